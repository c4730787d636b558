"""Make comparisons of a model's own responses: sample every prompt several times, score the samples, rank them.

    python -m posttrain.sample.rank inputs.model=DIR inputs.prompts=DIR output=DIR scorer=sentiment num_samples=4

`comparisons.jsonl` is a source for `data.curate`, whose adapter `ranked` reads it. Where the dataset of prompts is an
input of that curation too, each comparison falls on the side of its prompt.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.data.chat.pieces import encode_prompts, response_text
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import RATINGS, check_reference, ranks, require_scorer, score, scoring_function
from posttrain.data.messages import message_dicts
from posttrain.data.records import SPLITS, Record, dataset_type, prompt_of, read_records
from posttrain.models.load import load_policy
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.rank import RankConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.generate import sample_prompts
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import PosttrainError, UsageError

Judge = Callable[[Any, str], float]
"""Scores a response to a record's prompt."""


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
    texts = [
        [response_text(tokenizer, prompt, sample.token_ids) for sample in own]
        for prompt, own in zip(prompts, samples, strict=True)
    ]
    scores = [[judge(record, text) for text in own] for record, own in zip(records, texts, strict=True)]
    require_finite(scores)
    with (context.output / "comparisons.jsonl").open("w", encoding="utf-8") as file:
        for group in zip(records, texts, scores, samples, strict=True):
            row = comparison_row(*group, annotator=config.function or config.scorer)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return _result(scores, samples, records)


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
        return lambda record, response: function(message_dicts(record.prompt), response, _reference(record))
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
    return lambda record, response: score(scorer_name or own_scorer(record) or "", response, _reference(record) or "")


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


def comparison_row(
    record: Any, texts: Sequence[str], scores: Sequence[float], samples: Sequence[Sample], annotator: str | None
) -> dict[str, Any]:
    """Return the line of a prompt in the shape of the adapter ``ranked``; equal scores tie."""
    return {
        "id": record.id,
        "prompt": message_dicts(record.prompt),
        "tools": record.tools,
        "template_arguments": record.template_arguments,
        "responses": list(texts),
        "ranks": ranks(scores),
        "ended": [sample.finish_reason == "stop" for sample in samples],
        "scores": list(scores),
        "annotator": annotator or record.scorer,
        "license": record.license,
        "language": record.language,
        "task": record.task,
    }


def _result(
    scores: Sequence[Sequence[float]], samples: Sequence[Sequence[Sample]], records: Sequence[Record]
) -> StageResult:
    mean = statistics.fmean(value for own in scores for value in own)
    best = statistics.fmean(max(own) for own in scores)
    tied = sum(len(set(own)) == 1 for own in scores)
    ended = statistics.fmean(sample.finish_reason == "stop" for own in samples for sample in own)
    return StageResult(
        metrics={"prompts": len(scores), "score": mean, "best_score": best, "all_tied": tied, "ended": ended},
        headline=f"{len(scores):,} prompts, score {mean:.3f}, best of {len(scores[0])} {best:.3f}",
        tokens=sum(len(sample.token_ids) for own in samples for sample in own),
        licenses=sorted({record.license for record in records}),
    )


if __name__ == "__main__":
    stage_main(run, RankConfig, kind="sources")
