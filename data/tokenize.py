"""Turn a dataset into token ids under a model's own tokenizer and chat template.

python -m posttrain.data.tokenize inputs.data=DIR inputs.model=DIR output=DIR max_length=1024
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.config.tokenize import DEFAULT_LENGTH, TokenizeConfig, declared_positions
from posttrain.data.records import (
    SPLITS,
    Comparison,
    Demonstration,
    EvaluationItem,
    Prompt,
    Record,
    UnpairedPreference,
    dataset_type,
    read_records,
    type_name,
)
from posttrain.data.tokens.accounting import TokenAccounting, told_tokens
from posttrain.data.tokens.encode import encode_demonstrations
from posttrain.data.tokens.encode_comparisons import encode_comparisons
from posttrain.data.tokens.encode_prompts import encode_prompt_records
from posttrain.data.tokens.encode_unpaired import encode_unpaired
from posttrain.data.tokens.outcome import Outcome, Policies
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic
from posttrain.stage.leash import end_with_parent
from posttrain.stage.progress import track

BATCH_ROWS = 256
"""Rows that are rendered and encoded together."""

_IDS = pa.list_(pa.int32())
_COMMON = [(name, pa.string()) for name in ("id", "source", "language", "task")]
SCHEMAS: dict[type[Record], pa.Schema] = {
    Prompt: pa.schema(
        [
            *_COMMON,
            ("prompt_ids", _IDS),
            ("conversation", pa.string()),
            ("reference", pa.string()),
            ("scorer", pa.string()),
        ]
    ),
    Demonstration: pa.schema([*_COMMON, ("input_ids", _IDS), ("labels", _IDS)]),
    Comparison: pa.schema([*_COMMON, ("prompt_ids", _IDS), ("responses_ids", pa.list_(_IDS)), ("ranks", _IDS)]),
    UnpairedPreference: pa.schema([*_COMMON, ("prompt_ids", _IDS), ("response_ids", _IDS), ("label", pa.bool_())]),
}

Encode = Callable[[PreTrainedTokenizerBase, Sequence[Any]], list[Outcome]]
Map = Callable[[Iterable[Sequence[Any]]], Iterator[list[Outcome]]]


def run(config: TokenizeConfig, context: Context) -> StageResult:
    """Encode both splits of a dataset, and account for every row."""
    data, model = context.inputs["data"], context.inputs["model"]
    record_type = dataset_type(data)
    made = Prompt if config.prompts_only or record_type is EvaluationItem else record_type
    max_length = length_limit(config.max_length, model)
    encode = encoder(config, made, max_length)
    tokenizer = load_tokenizer(model, generation_markers=needs_markers(made, config.loss_on))
    accounting = TokenAccounting()
    with mapping(encode, tokenizer, model, config.num_workers) as encode_batches:
        for split in SPLITS:
            records = read_records(data / f"{split}.parquet", record_type)
            path = context.output / f"{split}.parquet"
            write_tokens(path, records, SCHEMAS[made], encode_batches, accounting)
    account = accounting.summary()
    facts = {"template_sha256": template_digest(tokenizer), "tokenizer_sha256": tokenizer_digest(tokenizer)}
    described = {"record_type": type_name(made), "max_length": max_length, "loss_on": config.loss_on, **facts}
    write_json_atomic(context.output / "tokens.json", described)
    write_json_atomic(context.output / "accounting.json", account)
    tokens = account["tokens"]["total"]
    return StageResult(
        metrics={"rows": account["kept"], "tokens": tokens, "truncated": account["truncated"]},
        headline=told_tokens(account, max_length),
        tokens=tokens,
        facts={**facts, "accounting": account},
    )


def length_limit(max_length: int | None, model: Path) -> int:
    """Return the most tokens of a row; an adapter artifact does not say how many its model takes.

    Raises UsageError when the model has fewer positions than ``max_length``.
    """
    path = model / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    positions = declared_positions(config)
    if max_length is None:
        return min(positions or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if positions is not None and max_length > positions:
        raise UsageError(
            f"data.tokenize.max_length={max_length}: the model takes at most {positions} tokens; "
            f"set data.tokenize.max_length={positions}"
        )
    return max_length


def needs_markers(record_type: type[Record], loss_on: str) -> bool:
    """Return whether it counts what the chat template marks as the assistant's."""
    return record_type is Demonstration and loss_on == "assistant"


def encoder(config: TokenizeConfig, record_type: type[Record], max_length: int) -> Encode:
    """Return the function that makes rows of one type as configured."""
    policies = Policies(
        max_length=max_length,
        overlong=config.overlong,
        on_control_tokens=config.on_control_tokens,
        on_lost_text=config.on_lost_text,
        thinking=config.thinking,
    )
    if record_type is Demonstration:
        return partial(encode_demonstrations, policies=policies, loss_on=config.loss_on)
    if record_type is Comparison:
        return partial(encode_comparisons, policies=policies)
    if record_type is UnpairedPreference:
        return partial(encode_unpaired, policies=policies)
    return partial(encode_prompt_records, policies=policies)


def write_tokens(
    path: Path, records: Sequence[Record], schema: pa.Schema, encode_batches: Map, accounting: TokenAccounting
) -> None:
    """Encode records in order into one Parquet file, and note what became of each."""
    batches = [records[start : start + BATCH_ROWS] for start in range(0, len(records), BATCH_ROWS)]
    with pq.ParquetWriter(path, schema) as writer:
        remaining = iter(records)
        for outcomes in track(encode_batches(batches), len(records), f"tokenize {path.stem}"):
            rows = [outcome.row for outcome in outcomes if outcome.row is not None]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            for record, outcome in zip(itertools.islice(remaining, len(outcomes)), outcomes, strict=True):
                accounting.add(record, outcome)


@contextlib.contextmanager
def mapping(encode: Encode, tokenizer: PreTrainedTokenizerBase, model: Path, num_workers: int) -> Iterator[Map]:
    """Yield a function that encodes batches in order, here or in worker processes."""
    if num_workers == 1:
        yield partial(map, partial(encode, tokenizer))
        return
    # Spawned, since forking a process whose tokenizer has started threads can deadlock.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, spawn, initializer=_start_worker, initargs=(encode, model)) as pool:
        yield partial(pool.map, _encode_in_worker)


_worker: Callable[[Sequence[Any]], list[Outcome]]


def _start_worker(encode: Encode, model: Path) -> None:
    global _worker
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = partial(encode, load_tokenizer(model))


def _encode_in_worker(records: Sequence[Any]) -> list[Outcome]:
    return _worker(records)


if __name__ == "__main__":
    stage_main(run, TokenizeConfig, kind="tokens")
