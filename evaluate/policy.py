"""Score one policy: held-out loss, and responses to evaluation items.

python -m posttrain.evaluate.policy inputs.model=DIR inputs.data=DIR inputs.items=DIR output=DIR max_new_tokens=64
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    take_evenly,
)
from posttrain.evaluate.measure.answering import Question, questions_of, require_finite
from posttrain.evaluate.measure.heldout import row_losses, summarise_losses, text_bytes
from posttrain.evaluate.measure.item_scores import (
    ScoredItem,
    prompt_text,
    scores_of,
    summarise_items,
    summarise_samples,
    write_items,
)
from posttrain.evaluate.measure.responding import answers_to, fitting
from posttrain.models.load import load_policy
from posttrain.models.processes import device, join_to_share
from posttrain.sample.backends.credentials import credentials
from posttrain.sample.backends.server import ServerSampler
from posttrain.sample.choose.answers import extractor
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Generates, Sample
from posttrain.stage.artifact import read_manifest
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
    questions = _questions(config, items_from, context.spec.seed) if items_from is not None else []
    judge = judge_of(config.function, [question.item for question in questions])
    log.info("%d held-out rows, %d items, %d new tokens at most", len(rows), len(questions), config.max_new_tokens)

    summary: dict[str, Any] = {"loss": None, "items": None, "too_long": []}
    if not rows and not questions:
        if context.main_process:
            write_json_atomic(context.output / "summary.json", summary)
        return StageResult(headline=NONE)
    model = load_policy(directory, config.dtype).eval().to(device())
    if rows:
        ids, labels = [r["input_ids"] for r in rows], [r["labels"] for r in rows]
        losses = row_losses(rank, context.work, model, ids, labels, config.batch_size)
        if losses is not None:
            sizes = [text_bytes(tokenizer, *row) for row in zip(ids, labels, strict=True)]
            summary["loss"] = summarise_losses(losses, [r["task"] for r in rows], [r["language"] for r in rows], sizes)
    if questions:
        source = _source(config, directory, model, tokenizer)
        kept, summary["too_long"] = fitting(model, tokenizer, questions)
        answers = answers_to(rank, context.work, model, source, tokenizer, kept, config.batch_size)
        if answers is None:
            return StageResult()
        scored = []
        for question, own in zip(kept, answers, strict=True):
            require_finite(question.item, own)
            scored.append(score_item(question.item, own, judge))
        write_items(context.output, scored)
        summary["items"] = summarise_items(scored)
        summary["samples"] = summarise_samples(scored) if any(item.scores for item in scored) else None
    if not context.main_process:
        return StageResult()
    write_json_atomic(context.output / "summary.json", summary)
    return _result(summary, sum(len(row["input_ids"]) for row in rows))


def _questions(config: PolicyEvaluationConfig, directory: Path, seed: int) -> list[Question]:
    items = take_evenly(read_evaluation_items(directory), config.max_items)
    return questions_of(config, items, read_records(directory / "train.parquet", EvaluationItem), seed)


def _source(
    config: PolicyEvaluationConfig, directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Generates:
    """Return what samples: the model here, or a server that has the same one."""
    if config.server is None:
        return Sampler(model, tokenizer, max_batch_size=config.batch_size, max_batch_tokens=config.batch_tokens)
    server = ServerSampler(
        config.server.url,
        config.server.model or read_manifest(directory).stage,
        tokenizer,
        config.server.dialect,
        max_concurrent=config.server.max_concurrent,
        headers=credentials(),
    )
    server.require_weights(model)
    return server


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
        known = [name for name in ("loss", "perplexity", "bits_per_byte") if overall[name] is not None]
        metrics |= {name: overall[name] for name in known}
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
