"""Make comparisons of a model's own responses: sample every prompt several times, score the samples, rank them.

    python -m posttrain.sample.rank inputs.model=DIR inputs.prompts=DIR output=DIR scorer=sentiment num_samples=4

`comparisons.jsonl` is a source for `data.curate`, whose adapter `ranked` reads it. Where the dataset of prompts is an
input of that curation too, each comparison falls on the side of its prompt. Answers are what is judged; the reasoning
before one is part of the response that is compared.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts, response_text
from posttrain.data.chat.reasoning import Reply
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import RATINGS, check_reference, ranks, require_scorer, score, scoring_function
from posttrain.data.messages import message_dicts
from posttrain.data.records import SPLITS, dataset_type, prompt_of, read_records
from posttrain.models.load import load_policy
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.rank import RankConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.generate import sample_prompts
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import PosttrainError, UsageError

log = logging.getLogger(__name__)

Judge = Callable[[Any, Reply], float]
"""Scores a reply to a record's prompt."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The replies to one prompt, with their scores."""

    record: Any
    replies: list[Reply]
    ended: list[bool]
    scores: list[float]


def run(config: RankConfig, context: Context) -> StageResult:
    """Write comparisons.jsonl: prompt, responses, ranks, scores, and whether each response ended by itself."""
    records = read_prompts(context.inputs["prompts"])
    judge = build_judge(config.function, config.scorer, records)
    tokenizer = load_tokenizer(context.inputs["model"])
    model = load_policy(context.inputs["model"], config.dtype).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    sampler = Sampler(model, tokenizer, max_batch_size=config.batch_size)
    prompts = encode_prompts(tokenizer, [prompt_of(record) for record in records])
    plain = SamplingParams(
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        num_samples=config.num_samples,
    )
    params = [dataclasses.replace(plain, seed=derived_seed(context.spec.seed, record.id)) for record in records]
    samples = sample_prompts(sampler, prompts, params)
    groups = [
        rank_samples(tokenizer, judge, record, prompt, own)
        for record, prompt, own in zip(records, prompts, samples, strict=True)
    ]
    kept = require_comparisons(groups, samples)
    with (context.output / "comparisons.jsonl").open("w", encoding="utf-8") as file:
        for group in kept:
            row = comparison_row(group, annotator=config.function or config.scorer)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return _result(kept, samples)


def rank_samples(
    tokenizer: PreTrainedTokenizerBase, judge: Judge, record: Any, prompt: Sequence[int], samples: Sequence[Sample]
) -> Ranked:
    """Return the samples that have an answer, with the scores of their answers."""
    answered = [sample for sample in samples if sample.answered]
    replies = [_reply(tokenizer, prompt, sample) for sample in answered]
    scores = [judge(record, reply) for reply in replies]
    return Ranked(record, replies, [sample.ended for sample in answered], scores)


def _reply(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], sample: Sample) -> Reply:
    if sample.whole is None:
        return Reply(response_text(tokenizer, prompt, sample.token_ids))
    return Reply(sample.text, sample.reasoning)


def require_comparisons(groups: Sequence[Ranked], samples: Sequence[Sequence[Sample]]) -> list[Ranked]:
    """Return the prompts with two answers or more, saying how many are left out.

    A response that ended within its reasoning cannot be written as a turn. Raises PosttrainError where no prompt is
    left, or a score cannot be ranked.
    """
    require_finite([group.scores for group in groups])
    kept = [group for group in groups if len(group.replies) > 1]
    unanswered = sum(not sample.answered for own in samples for sample in own)
    if unanswered:
        log.warning(
            "%d of %d responses ended within their reasoning and are left out, and with them %d of %d prompts; "
            "raise max_new_tokens",
            unanswered,
            sum(map(len, samples)),
            len(groups) - len(kept),
            len(groups),
        )
    if not kept:
        raise PosttrainError(
            f"sample.rank: {unanswered} responses ended within their reasoning, so no prompt has two answers to "
            "compare; raise max_new_tokens"
        )
    return kept


def read_prompts(directory: Path) -> list[Any]:
    """Return the records of both splits of a dataset, of any type that has prompts.

    Raises UsageError when there is none, or one has no prompt.
    """
    record_type: type[Any] = dataset_type(directory)
    records = [record for split in SPLITS for record in read_records(directory / f"{split}.parquet", record_type)]
    if not records or not all(record.prompt for record in records):
        raise UsageError(f"{directory.name}: rows without a prompt, or no rows; give a dataset of prompts")
    return records


def build_judge(function_name: str | None, scorer_name: str | None, records: Sequence[Any]) -> Judge:
    """Return what scores a response to a record, checked against all records.

    Raises UsageError where a record lacks what its scorer needs.
    """
    if function_name is not None:
        function = scoring_function(function_name, "sample.rank.function")
        return lambda record, reply: function(
            message_dicts(record.prompt), reply.answer, _reference(record), reply.reasoning
        )
    for record in records:
        scorer = scorer_name or own_scorer(record)
        if scorer is None:
            raise UsageError(f"sample.rank.scorer: prompt {record.id} names no scorer; give one, or a function")
        require_scorer(scorer)
        if _reference(record) is None and scorer not in RATINGS:
            raise UsageError(
                f"sample.rank.scorer: prompt {record.id} has no reference, which {scorer} judges by; give references"
            )
        check_reference(scorer, _reference(record) or "")
    return lambda record, reply: score(scorer_name or own_scorer(record) or "", reply.answer, _reference(record) or "")


def require_finite(scores: Sequence[Sequence[float]]) -> None:
    """Raise PosttrainError, with counts, for scores that cannot be ranked."""
    values = [value for own in scores for value in own]
    if bad := sum(not math.isfinite(value) for value in values):
        raise PosttrainError(
            f"sample.rank: {bad} of {len(values)} scores are not finite; look at the function behind them"
        )


def own_scorer(record: Any) -> str | None:
    """Return the scorer that a record names."""
    scorer: str | None = getattr(record, "scorer", None)
    return scorer


def _reference(record: Any) -> str | None:
    return getattr(record, "reference", None)


def comparison_row(group: Ranked, annotator: str | None) -> dict[str, Any]:
    """Return the line of a prompt in the shape of the adapter ``ranked``; equal scores tie."""
    record = group.record
    return {
        "id": record.id,
        "prompt": message_dicts(record.prompt),
        "tools": record.tools,
        "template_arguments": record.template_arguments,
        "responses": [reply.inline for reply in group.replies],
        "ranks": ranks(group.scores),
        "ended": group.ended,
        "scores": group.scores,
        "annotator": annotator or record.scorer,
        "license": record.license,
        "language": record.language,
        "task": record.task,
    }


def _result(groups: Sequence[Ranked], samples: Sequence[Sequence[Sample]]) -> StageResult:
    everyone = [sample for own in samples for sample in own]
    mean = statistics.fmean(value for group in groups for value in group.scores)
    best = statistics.fmean(max(group.scores) for group in groups)
    metrics: dict[str, Any] = {
        "prompts": len(groups),
        "score": mean,
        "best_score": best,
        "all_tied": sum(len(set(group.scores)) == 1 for group in groups),
        "ended": statistics.fmean(sample.ended for sample in everyone),
    }
    if any(sample.reasoning_tokens or not sample.answered for sample in everyone):
        metrics["reasoning_tokens"] = statistics.fmean(sample.reasoning_tokens for sample in everyone)
        metrics["unanswered"] = sum(not sample.answered for sample in everyone)
    return StageResult(
        metrics=metrics,
        headline=f"{len(groups):,} prompts, score {mean:.3f}, best of {len(samples[0])} {best:.3f}",
        tokens=sum(len(sample.token_ids) for sample in everyone),
        licenses=sorted({group.record.license for group in groups}),
    )


if __name__ == "__main__":
    stage_main(run, RankConfig, kind="sources")
