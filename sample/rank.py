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
import statistics
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.reasoning import Reply
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import ranks
from posttrain.data.messages import message_dicts
from posttrain.data.records import prompt_of
from posttrain.models.load import load_policy
from posttrain.models.processes import device, join_to_share
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.rank import RankConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.judges import Judge, build_judge, read_prompts, reply_of, require_finite
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.shares import sample_shares
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import PosttrainError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The replies to one prompt, with their scores."""

    record: Any
    replies: list[Reply]
    ended: list[bool]
    scores: list[float]


def run(config: RankConfig, context: Context) -> StageResult:
    """Write comparisons.jsonl: prompt, responses, ranks, scores, and whether each response ended by itself."""
    rank = join_to_share(context)
    records = read_prompts(context.inputs["prompts"])
    judge = build_judge("sample.rank", config.function, config.scorer, records)
    tokenizer = load_tokenizer(context.inputs["model"])
    model = load_policy(context.inputs["model"], config.dtype).eval().to(device())
    sampler = Sampler(model, tokenizer, max_batch_size=config.batch_size, max_batch_tokens=config.batch_tokens)
    prompts = encode_prompts(tokenizer, [prompt_of(record) for record in records])
    plain = SamplingParams(
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        num_samples=config.num_samples,
    )
    params = [dataclasses.replace(plain, seed=derived_seed(context.spec.seed, record.id)) for record in records]
    samples = sample_shares(rank, context.work, sampler, prompts, params, config.batch_size)
    if samples is None:
        return StageResult()
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
    replies = [reply_of(tokenizer, prompt, sample) for sample in answered]
    scores = [judge(record, reply) for reply in replies]
    return Ranked(record, replies, [sample.ended for sample in answered], scores)


def require_comparisons(groups: Sequence[Ranked], samples: Sequence[Sequence[Sample]]) -> list[Ranked]:
    """Return the prompts with two answers or more, saying how many are left out.

    A response that ended within its reasoning cannot be written as a turn. Raises PosttrainError where no prompt is
    left, or a score cannot be ranked.
    """
    require_finite("sample.rank", [group.scores for group in groups])
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
