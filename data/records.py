"""The records that curated datasets hold, and their Parquet files.

A dataset artifact holds records of one type in `train.parquet` and `eval.parquet` (either may have no rows), the name
of that type in `dataset.json`, and the row accounting in `accounting.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")
IGNORED = -100
"""Label of a token that is not trained on."""
_LARGEST_RANK = 2**31 - 1
"""What the column of ranks holds."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    """What every record carries besides its payload: where it comes from and what it is about."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1)]
    source: str
    license: str = "unknown"
    language: str = "und"
    """BCP-47 tag; ``und`` when unknown."""
    task: str = "general"
    split: Split = "train"


class Demonstration(Record):
    """A conversation to imitate: `completion` is the assistant's last turn. An empty prompt makes it plain text."""

    prompt: list[Message]
    completion: Annotated[list[Message], Field(min_length=1)]


class Comparison(Record):
    """K ≥ 2 responses to one prompt with their ranks: 1 is best, equal ranks are ties."""

    prompt: Annotated[list[Message], Field(min_length=1)]
    responses: Annotated[list[str], Field(min_length=2)]
    ranks: list[int]
    annotator: str = "unknown"
    ended: list[bool] | None = None
    """Whether each response came to its end, rather than being cut at a limit; None where all did."""

    @model_validator(mode="after")
    def _one_rank_each(self) -> Comparison:
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses but {len(self.ranks)} ranks; give one rank each")
        if self.ended is not None and len(self.ended) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses but {len(self.ended)} values of ended; give one each")
        if min(self.ranks) < 1:
            raise ValueError(f"rank {min(self.ranks)}; ranks start at 1, the best")
        if max(self.ranks) > _LARGEST_RANK:
            raise ValueError(f"rank {max(self.ranks)}; ranks end at {_LARGEST_RANK}")
        return self


class Prompt(Record):
    """A prompt to answer, for rollouts and synthesis."""

    prompt: Annotated[list[Message], Field(min_length=1)]
    reference: str | None = None


class EvaluationItem(Record):
    """A prompt with a reference and the name of the scorer (`posttrain.data.checks.scorers`) that judges a response."""

    prompt: Annotated[list[Message], Field(min_length=1)]
    reference: str
    scorer: str
    ideal: str | None = None
    """The response that a perfect assistant would give, where there is one; preference scores compare with it."""


RECORD_TYPES: dict[str, type[Record]] = {
    "demonstration": Demonstration,
    "comparison": Comparison,
    "prompt": Prompt,
    "evaluation": EvaluationItem,
}

R = TypeVar("R", bound=Record)

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_COMMON = [(name, pa.string()) for name in ("id", "source", "license", "language", "task", "split")]
_PAYLOAD: dict[type[Record], list[tuple[str, pa.DataType]]] = {
    Demonstration: [("prompt", _MESSAGES), ("completion", _MESSAGES)],
    Comparison: [
        ("prompt", _MESSAGES),
        ("responses", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int32())),
        ("annotator", pa.string()),
        ("ended", pa.list_(pa.bool_())),
    ],
    Prompt: [("prompt", _MESSAGES), ("reference", pa.string())],
    EvaluationItem: [
        ("prompt", _MESSAGES),
        ("reference", pa.string()),
        ("scorer", pa.string()),
        ("ideal", pa.string()),
    ],
}


def arrow_schema(record_type: type[Record]) -> pa.Schema:
    """Return the written Parquet schema of a record type."""
    return pa.schema(_COMMON + _PAYLOAD[record_type])


def write_records(path: Path, records: Iterable[R], record_type: type[R]) -> None:
    """Write records of one type as a Parquet file with exactly that type's schema."""
    rows = [record.model_dump() for record in records]
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(record_type)), path)


def read_records(path: Path, record_type: type[R]) -> list[R]:
    """Return the records of a Parquet file that `write_records` wrote."""
    construct: Callable[..., Any] = record_type.model_construct
    return [construct(**_with_messages(row)) for row in pq.read_table(path).to_pylist()]


def _with_messages(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [Message.model_construct(**message) for message in value] if name in ("prompt", "completion") else value
        for name, value in row.items()
    }


def write_dataset(directory: Path, records: Sequence[R], record_type: type[R]) -> None:
    """Write records into a dataset directory, one file per split, and name their type."""
    for split in SPLITS:
        write_records(directory / f"{split}.parquet", [r for r in records if r.split == split], record_type)
    name = next(name for name, cls in RECORD_TYPES.items() if cls is record_type)
    (directory / "dataset.json").write_text(json.dumps({"record_type": name}) + "\n", encoding="utf-8")


def dataset_type(directory: Path) -> type[Record]:
    """Return the record type that a dataset artifact holds."""
    raw = json.loads((directory / "dataset.json").read_text(encoding="utf-8"))
    return RECORD_TYPES[raw["record_type"]]


def message_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as the plain dictionaries that chat templates take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def untied_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Return every pair of responses whose ranks differ, by index, the better one first (rank 1 is best)."""
    return [
        (better, worse)
        for better, rank in enumerate(ranks)
        for worse, other_rank in enumerate(ranks)
        if rank < other_rank
    ]
