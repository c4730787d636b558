"""Score one policy: held-out loss, and greedy responses to evaluation items.

python -m posttrain.evaluate.policy inputs.model=DIR inputs.data=DIR inputs.items=DIR output=DIR max_new_tokens=64
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.records import EvaluationItem, prompt_of
from posttrain.evaluate.config.policy import PolicyEvaluationConfig
from posttrain.evaluate.inputs import (
    NONE,
    read_evaluation_items,
    read_heldout_tokens,
    require_right_and_wrong,
    split_by_length,
    take_evenly,
)
from posttrain.evaluate.measure.heldout import row_losses, summarise_losses
from posttrain.evaluate.measure.item_scores import ScoredItem, prompt_text, scores_of, summarise_items, write_items
from posttrain.models.load import load_policy
from posttrain.sample.generate import generate
from posttrain.sample.sampling import Sample
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)


def run(config: PolicyEvaluationConfig, context: Context) -> StageResult:
    """Write items.parquet (when there are items) and summary.json, which is empty without any rows and items."""
    data, items_from = context.inputs.get("data"), context.inputs.get("items")
    if data is None and items_from is None:
        raise UsageError("evaluate.policy: nothing to score on; give inputs.data, inputs.items or both")
    directory = context.inputs["model"]
    tokenizer = load_tokenizer(directory)
    rows = read_heldout_tokens(data, "demonstration", tokenizer) if data is not None else []
    items = take_evenly(read_evaluation_items(items_from), config.max_items) if items_from is not None else []
    require_right_and_wrong(items, "evaluate.policy")
    log.info("%d held-out rows, %d items, %d new tokens at most", len(rows), len(items), config.max_new_tokens)

    if not rows and not items:
        write_json_atomic(context.output / "summary.json", {"loss": None, "items": None, "too_long": []})
        return StageResult(headline=NONE)
    model = load_policy(directory, config.dtype).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    summary: dict[str, Any] = {"loss": None, "items": None, "too_long": []}
    if rows:
        losses = row_losses(model, [r["input_ids"] for r in rows], [r["labels"] for r in rows], config.batch_size)
        summary["loss"] = summarise_losses(losses, [r["task"] for r in rows], [r["language"] for r in rows])
    if items:
        fitting, summary["too_long"] = split_by_length(model, tokenizer, items, config.max_new_tokens)
        prompts = [prompt_of(item) for item in fitting]
        responses = generate(model, tokenizer, prompts, config.max_new_tokens, config.batch_size)
        scored = [score_item(item, response) for item, response in zip(fitting, responses, strict=True)]
        write_items(context.output, scored)
        summary["items"] = summarise_items(scored)
    write_json_atomic(context.output / "summary.json", summary)
    return _result(summary, sum(len(row["input_ids"]) for row in rows))


def score_item(item: EvaluationItem, sample: Sample) -> ScoredItem:
    """Return a response with the scores of its answer."""
    correct, preference = scores_of(item, sample.text)
    return ScoredItem(
        id=item.id,
        task=item.task,
        language=item.language,
        prompt=prompt_text(item.prompt),
        response=sample.response,
        reference=item.reference,
        ideal=item.ideal,
        scorer=item.scorer,
        correct=correct,
        preference=preference,
        ended=sample.ended,
        answer=sample.text,
        reasoning_tokens=sample.reasoning_tokens,
        answered=sample.answered,
        group=item.group,
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
        if overall["preference"] is not None:
            metrics["preference"] = overall["preference"]["value"]
    return StageResult(metrics=metrics, headline=headline, tokens=tokens)


if __name__ == "__main__":
    stage_main(run, PolicyEvaluationConfig, kind="scores")
