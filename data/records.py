"""The records that curated datasets hold, and their Parquet files.

A dataset artifact holds records of one type in `train.parquet` and `eval.parquet` (either may have no rows), the name
of that type in `dataset.json`, and the row accounting in `accounting.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.data.messages import (
    MESSAGE_TYPE,
    Conversation,
    Json,
    Message,
    message_dicts,
    read_message,
    stored_message,
)

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = ("train", "eval")
IGNORED = -100
"""Label of a token that is not trained on."""
_LARGEST_RANK = 2**31 - 1
"""What the column of ranks holds."""
_BATCH = 4096
"""Rows that are read at once."""
_GROUP = 65_536
"""Rows of a group of a Parquet file."""


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
    tools: list[Json] | None = None
    """Definitions of the tools on offer, in the JSON schema form of the OpenAI chat format."""
    template_arguments: Json | None = None
    """Arguments of the chat template for this row alone, such as ``enable_thinking``."""


class Demonstration(Record):
    """A conversation to imitate: `completion` is the assistant's last turn. An empty prompt makes it plain text."""

    prompt: list[Message]
    completion: Annotated[list[Message], Field(min_length=1)]

    @model_validator(mode="after")
    def _says_something(self) -> Demonstration:
        if not (self.completion[-1].content or self.completion[-1].tool_calls):
            raise ValueError("completion: empty content; write a text or remove the row")
        return self


class Comparison(Record):
    """K ≥ 2 responses to one prompt with their ranks: 1 is best, equal ranks are ties.

    A response is one turn of the assistant.
    """

    prompt: Annotated[list[Message], Field(min_length=1)]
    responses: Annotated[list[Message], Field(min_length=2)]
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


class UnpairedPreference(Record):
    """One answer to a prompt, and whether it is desirable."""

    prompt: Annotated[list[Message], Field(min_length=1)]
    completion: Annotated[list[Message], Field(min_length=1, max_length=1)]
    """One turn of the assistant."""
    label: bool
    """True where the completion is desirable."""
    ended: bool = True
    """Whether the completion came to its end, rather than being cut at a limit."""

    @model_validator(mode="after")
    def _is_an_answer(self) -> UnpairedPreference:
        turn = self.completion[0]
        if turn.role != "assistant":
            raise ValueError(f"the completion is by {turn.role!r}; give one turn of the assistant")
        if not (turn.content or turn.tool_calls):
            raise ValueError("completion: empty content; write a text or remove the row")
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
    group: str | None = None
    """What it asks: items of one group are one question, as its translations are, and count as one cluster."""


RECORD_TYPES: dict[str, type[Record]] = {
    "demonstration": Demonstration,
    "comparison": Comparison,
    "unpaired": UnpairedPreference,
    "prompt": Prompt,
    "evaluation": EvaluationItem,
}

R = TypeVar("R", bound=Record)

_MESSAGES = pa.list_(MESSAGE_TYPE)
_COMMON = [
    (name, pa.string())
    for name in ("id", "source", "license", "language", "task", "split", "tools", "template_arguments")
]
_TURNS = ("prompt", "completion", "responses")
"""Columns that hold messages."""
_JSON = ("tools", "template_arguments")
"""Columns of any structure, stored as JSON text."""
_PAYLOAD: dict[type[Record], list[tuple[str, pa.DataType]]] = {
    Demonstration: [("prompt", _MESSAGES), ("completion", _MESSAGES)],
    Comparison: [
        ("prompt", _MESSAGES),
        ("responses", _MESSAGES),
        ("ranks", pa.list_(pa.int32())),
        ("annotator", pa.string()),
        ("ended", pa.list_(pa.bool_())),
    ],
    UnpairedPreference: [
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
        ("label", pa.bool_()),
        ("ended", pa.bool_()),
    ],
    Prompt: [("prompt", _MESSAGES), ("reference", pa.string())],
    EvaluationItem: [
        ("prompt", _MESSAGES),
        ("reference", pa.string()),
        ("scorer", pa.string()),
        ("ideal", pa.string()),
        ("group", pa.string()),
    ],
}


def arrow_schema(record_type: type[Record]) -> pa.Schema:
    """Return the written Parquet schema of a record type."""
    return pa.schema(_COMMON + _PAYLOAD[record_type])


def write_records(path: Path, records: Iterable[R], record_type: type[R]) -> None:
    """Write records of one type as a Parquet file with exactly that type's schema; few are held at once."""
    with RecordWriter(path, record_type) as writer:
        for record in records:
            writer.write(record)


class RecordWriter:
    """Writes records of one type into a Parquet file, in groups of `_GROUP` rows."""

    def __init__(self, path: Path, record_type: type[Record]) -> None:
        self._schema = arrow_schema(record_type)
        self._file = pq.ParquetWriter(path, self._schema)
        self._waiting: list[Json] = []
        self._batches: list[pa.RecordBatch] = []
        self._written = False

    def write(self, record: Record) -> None:
        """Write one record."""
        self._waiting.append(stored_record(record))
        if len(self._waiting) == _BATCH:
            self._pack()
        if len(self._batches) == _GROUP // _BATCH:
            self._flush()

    def _pack(self) -> None:
        """Make columns of the rows that wait, which take a fraction of the memory."""
        self._batches.append(pa.RecordBatch.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_batches(self._batches, schema=self._schema).combine_chunks())
        self._batches, self._written = [], True

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._waiting:
            self._pack()
        if kind is None and (self._batches or not self._written):
            self._flush()
        self._file.close()


def read_records(path: Path, record_type: type[R]) -> list[R]:
    """Return the records of a Parquet file that `write_records` wrote."""
    return list(each_record(path, record_type))


def each_record(path: Path, record_type: type[R]) -> Iterator[R]:
    """Yield the records of a Parquet file that `write_records` wrote, of which few are held at once."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            for row in batch.to_pylist():
                yield record_of(row, record_type)


def record_of(row: Json, record_type: type[R]) -> R:
    """Return the record of what `stored_record` made, which is not checked again."""
    construct: Callable[..., Any] = record_type.model_construct
    made: R = construct(**{name: _read(name, value) for name, value in row.items()})
    return made


def stored_record(record: Record) -> Json:
    """Return a record as a row of `arrow_schema`."""
    row: Json = {}
    for name, value in record:
        if name in _TURNS:
            value = [stored_message(message) for message in value]
        elif name in _JSON and value is not None:
            value = json.dumps(value, ensure_ascii=False)
        row[name] = value
    return row


def _read(name: str, value: Any) -> Any:
    if name in _TURNS:
        return [read_message(message) for message in value]
    return json.loads(value) if name in _JSON and value is not None else value


def write_dataset(directory: Path, records: Iterable[R], record_type: type[R]) -> None:
    """Write records into a dataset directory, one file per split, and name their type."""
    train, held_out = (RecordWriter(directory / f"{split}.parquet", record_type) for split in SPLITS)
    with train, held_out:
        for record in records:
            (train if record.split == "train" else held_out).write(record)
    facts = {"record_type": type_name(record_type)}
    (directory / "dataset.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def type_name(record_type: type[Record]) -> str:
    """Return what a record type is called in configurations and artifacts."""
    return next(name for name, cls in RECORD_TYPES.items() if cls is record_type)


def dataset_type(directory: Path) -> type[Record]:
    """Return the record type that a dataset artifact holds."""
    raw = json.loads((directory / "dataset.json").read_text(encoding="utf-8"))
    return RECORD_TYPES[raw["record_type"]]


def prompt_of(record: Record) -> Conversation:
    """Return what a record asks, with its tools and arguments, as chat templates take it."""
    prompt: list[Message] = getattr(record, "prompt")  # noqa: B009 (every record type has one, the base class does not)
    return Conversation(message_dicts(prompt), record.tools or [], record.template_arguments or {})


def untied_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Return every pair of responses whose ranks differ, by index, the better one first (rank 1 is best)."""
    return [
        (better, worse)
        for better, rank in enumerate(ranks)
        for worse, other_rank in enumerate(ranks)
        if rank < other_rank
    ]
