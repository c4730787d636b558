"""Score one policy: held-out loss, and responses to evaluation items.

python -m posttrain.evaluate.policy inputs.model=DIR inputs.data=DIR inputs.items=DIR output=DIR max_new_tokens=64
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import scoring_function
from posttrain.data.messages import message_dicts
from posttrain.data.records import EvaluationItem, read_records
from posttrain.evaluate.config.policy import PolicyEvaluationConfig
from posttrain.evaluate.inputs import (
    NONE,
    read_evaluation_items,
    read_heldout_tokens,
    require_right_and_wrong,
    split_by_length,
    take_evenly,
)
from posttrain.evaluate.measure.answering import asked, require_finite
from posttrain.evaluate.measure.heldout import row_losses, summarise_losses
from posttrain.evaluate.measure.item_scores import (
    ScoredItem,
    prompt_text,
    scores_of,
    summarise_items,
    summarise_samples,
    write_items,
)
from posttrain.models.load import load_policy
from posttrain.models.processes import device, join_to_share
from posttrain.sample.choose.answers import extractor
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.shares import sample_shares
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import write_json_atomic

Judge = Callable[[EvaluationItem, Sample], tuple[float, float | None]]

log = logging.getLogger(__name__)


def run(config: PolicyEvaluationConfig, context: Context) -> StageResult:
    """Write items.parquet (when there are items) and summary.json, which is empty without any rows and items."""
    data, items_from = context.inputs.get("data"), context.inputs.get("items")
    if data is None and items_from is None:
        raise UsageError("evaluate.policy: nothing to score on; give inputs.data, inputs.items or both")
    rank = join_to_share(context)
    directory = context.inputs["model"]
    tokenizer = load_tokenizer(directory)
    rows = read_heldout_tokens(data, "demonstration", tokenizer) if data is not None else []
    items = take_evenly(read_evaluation_items(items_from), config.max_items) if items_from is not None else []
    judge = judge_of(config.function, items)
    examples = read_records(items_from / "train.parquet", EvaluationItem) if items_from is not None else []
    conversations = dict(
        zip((item.id for item in items), asked(items, examples, config.system, config.few_shot), strict=True)
    )
    log.info("%d held-out rows, %d items, %d new tokens at most", len(rows), len(items), config.max_new_tokens)

    summary: dict[str, Any] = {"loss": None, "items": None, "too_long": []}
    if not rows and not items:
        if context.main_process:
            write_json_atomic(context.output / "summary.json", summary)
        return StageResult(headline=NONE)
    model = load_policy(directory, config.dtype).eval().to(device())
    if rows:
        ids, labels = [r["input_ids"] for r in rows], [r["labels"] for r in rows]
        losses = row_losses(rank, context.work, model, ids, labels, config.batch_size)
        if losses is not None:
            summary["loss"] = summarise_losses(losses, [r["task"] for r in rows], [r["language"] for r in rows])
    if items:
        fitting, summary["too_long"] = split_by_length(
            model, tokenizer, items, config.max_new_tokens, list(conversations.values())
        )
        prompts = encode_prompts(tokenizer, [conversations[item.id] for item in fitting])
        params = [_params(config, derived_seed(context.spec.seed, item.id)) for item in fitting]
        sampler = Sampler(model, tokenizer, max_batch_size=config.batch_size, max_batch_tokens=config.batch_tokens)
        responses = sample_shares(rank, context.work, sampler, prompts, params)
        if responses is None:
            return StageResult()
        for item, own in zip(fitting, responses, strict=True):
            require_finite(item, own)
        scored = [score_item(item, own, judge) for item, own in zip(fitting, responses, strict=True)]
        write_items(context.output, scored)
        summary["items"] = summarise_items(scored)
        summary["samples"] = summarise_samples(scored) if config.num_samples > 1 else None
    if not context.main_process:
        return StageResult()
    write_json_atomic(context.output / "summary.json", summary)
    return _result(summary, sum(len(row["input_ids"]) for row in rows))


def _params(config: PolicyEvaluationConfig, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        num_samples=config.num_samples,
        seed=seed,
    )


def judge_of(function_name: str | None, items: Sequence[EvaluationItem]) -> Judge:
    """Return what scores an answer to an item and its true preference: the items' scorers, or a user's function.

    Raises UsageError for an item whose scorer calls nothing right.
    """
    if function_name is None:
        require_right_and_wrong(items, "evaluate.policy")
        return lambda item, sample: scores_of(item, sample.text)
    function = scoring_function(function_name, "evaluate.policy.function")

    def judge(item: EvaluationItem, sample: Sample) -> tuple[float, float | None]:
        value = function(message_dicts(item.prompt), sample.text, item.reference, sample.reasoning)
        if not 0 <= value <= 1:
            raise PosttrainError(f"evaluate.policy.function: {value} for item {item.id}; return a number from 0 to 1")
        return value, None

    return judge


def score_item(item: EvaluationItem, samples: Sequence[Sample], judge: Judge) -> ScoredItem:
    """Return the responses to an item with the scores of their answers: their means, and the first one's text."""
    scores = [judge(item, sample) for sample in samples]
    correct = [value for value, _ in scores]
    preferences = [value for _, value in scores if value is not None]
    first, several = samples[0], len(samples) > 1
    extract = extractor(item.scorer, sorted(item.reference.split("|")))
    return ScoredItem(
        id=item.id,
        task=item.task,
        language=item.language,
        prompt=prompt_text(item.prompt),
        response=first.response,
        reference=item.reference,
        ideal=item.ideal,
        scorer=item.scorer,
        correct=fmean(correct),
        preference=fmean(preferences) if preferences else None,
        ended=first.ended,
        answer=first.text,
        reasoning_tokens=first.reasoning_tokens,
        answered=first.answered,
        group=item.group,
        samples=[sample.response for sample in samples] if several else None,
        scores=correct if several else None,
        answers=[extract(sample.text) if sample.answered else None for sample in samples] if several else None,
    )


def _result(summary: dict[str, Any], tokens: int) -> StageResult:
    metrics: dict[str, Any] = {"too_long": len(summary["too_long"])}
    headline = ""
    if summary["loss"] is not None:
        overall = summary["loss"]["overall"]
        metrics |= {"loss": overall["loss"], "perplexity": overall["perplexity"]}
        headline = f"loss {overall['loss']:.3f}"
    if summary["items"] is not None:
        overall = summary["items"]["overall"]
        metrics |= {"exact_match": overall["exact_match"]["value"], "ended": overall["ended"], "items": overall["n"]}
        headline = f"exact match {overall['exact_match']['value']:.2f}"
        if overall["reasoning"] is not None:
            metrics |= {f"reasoning_{name}": value for name, value in overall["reasoning"].items()}
        if overall["sources"] is not None:
            metrics |= {name: share["value"] for name, share in overall["sources"].items()}
            headline += f", grounded {overall['sources']['grounded']['value']:.2f}"
        if overall["preference"] is not None:
            metrics["preference"] = overall["preference"]["value"]
    if summary.get("samples") is not None:
        last = summary["samples"]["curve"][-1]
        metrics |= {
            f"pass_at_{last['k']}": last["pass"]["value"],
            f"majority_at_{last['k']}": last["majority"]["value"],
        }
    return StageResult(metrics=metrics, headline=headline, tokens=tokens)


if __name__ == "__main__":
    stage_main(run, PolicyEvaluationConfig, kind="scores")
