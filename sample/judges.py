"""The prompts of a dataset, what samples of them say, and what judges it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import response_text
from posttrain.data.chat.reasoning import Reply
from posttrain.data.checks.scorers import RATINGS, require_scorer, require_whole_reference, score, scoring_function
from posttrain.data.messages import message_dicts
from posttrain.data.records import SPLITS, dataset_type, read_records
from posttrain.sample.sampling import Sample
from posttrain.stage.errors import PosttrainError, UsageError

Judge = Callable[[Any, Reply], float]
"""Scores a reply to a record's prompt."""


def read_prompts(directory: Path) -> list[Any]:
    """Return the records of both splits of a dataset, of any type that has prompts.

    Raises UsageError when there is none, or one has no prompt.
    """
    record_type: type[Any] = dataset_type(directory)
    records = [record for split in SPLITS for record in read_records(directory / f"{split}.parquet", record_type)]
    if not records or not all(record.prompt for record in records):
        raise UsageError(f"{directory.name}: rows without a prompt, or no rows; give a dataset of prompts")
    return records


def build_judge(where: str, function_name: str | None, scorer_name: str | None, records: Sequence[Any]) -> Judge:
    """Return what scores a response to a record, checked against all records.

    ``where`` is the stage whose knobs these are. Raises UsageError where a record lacks what its scorer needs.
    """
    if function_name is not None:
        function = scoring_function(function_name, f"{where}.function")
        return lambda record, reply: function(
            message_dicts(record.prompt), reply.answer, reference_of(record), reply.reasoning
        )
    for record in records:
        scorer = scorer_name or own_scorer(record)
        if scorer is None:
            raise UsageError(f"{where}.scorer: prompt {record.id} names no scorer; give one, or a function")
        require_scorer(scorer)
        if reference_of(record) is None and scorer not in RATINGS:
            raise UsageError(
                f"{where}.scorer: prompt {record.id} has no reference, which {scorer} judges by; give references"
            )
        require_whole_reference(scorer, reference_of(record) or "")
    return lambda record, reply: score(
        scorer_name or own_scorer(record) or "", reply.answer, reference_of(record) or ""
    )


def require_finite(where: str, scores: Sequence[Sequence[float]]) -> None:
    """Raise PosttrainError, with counts, for scores that cannot be ranked."""
    values = [value for own in scores for value in own]
    if bad := sum(not math.isfinite(value) for value in values):
        raise PosttrainError(f"{where}: {bad} of {len(values)} scores are not finite; look at the function behind them")


def own_scorer(record: Any) -> str | None:
    """Return the scorer that a record names."""
    scorer: str | None = getattr(record, "scorer", None)
    return scorer


def reference_of(record: Any) -> str | None:
    """Return the reference of a record, if it has one."""
    reference: str | None = getattr(record, "reference", None)
    return reference


def reply_of(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], sample: Sample) -> Reply:
    """Return what a sample says, letter for letter, the reasoning apart."""
    if sample.whole is None:
        return Reply(response_text(tokenizer, prompt, sample.token_ids))
    return Reply(sample.text, sample.reasoning)
