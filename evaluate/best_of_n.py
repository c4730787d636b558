"""Sample each evaluation item N times, and say what choosing among the samples buys.

python -m posttrain.evaluate.best_of_n inputs.model=DIR inputs.reward_model=DIR inputs.items=DIR output=DIR
"""

from __future__ import annotations

import csv
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.checks.scorers import preference_score, score
from posttrain.data.records import EvaluationItem, prompt_of
from posttrain.evaluate.config.best_of_n import BestOfNConfig
from posttrain.evaluate.inputs import read_evaluation_items, require_right_and_wrong, split_by_length, take_evenly
from posttrain.evaluate.measure.answering import require_finite
from posttrain.evaluate.measure.ensembles import ensemble_figures
from posttrain.evaluate.measure.selection import SELECTORS, SampledItem, calibration_figures, curve_figures
from posttrain.evaluate.page.figures import selection_plots
from posttrain.models.load import load_policy
from posttrain.models.processes import device, join_to_share
from posttrain.sample.choose.answers import extractor
from posttrain.sample.choose.ensemble import combined
from posttrain.sample.choose.select import answer_logprob, derived_seed
from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.score import member_rewards, members, require_tokenizer
from posttrain.sample.shares import sample_shares
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)


def run(config: BestOfNConfig, context: Context) -> StageResult:
    """Write samples.parquet, curve.json, curve.csv, calibration.json and the figures."""
    rank = join_to_share(context)
    tokenizer = load_tokenizer(context.inputs["model"])
    judges = members(context.inputs, "reward_model")
    require_tokenizer(judges, tokenizer_digest(tokenizer), "evaluate.best_of_n")
    items = take_evenly(read_evaluation_items(context.inputs["items"]), config.max_items)
    require_right_and_wrong(items, "evaluate.best_of_n")
    model = load_policy(context.inputs["model"], config.dtype).eval().to(device())
    items, too_long = split_by_length(model, tokenizer, items, config.max_new_tokens)
    log.info("%d items, %d samples each, %d new tokens at most", len(items), config.num_samples, config.max_new_tokens)

    prompts = encode_prompts(tokenizer, [prompt_of(item) for item in items])
    params = [
        SamplingParams(
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            num_samples=config.num_samples,
            seed=derived_seed(context.spec.seed, item.id),
        )
        for item in items
    ]
    sampler = Sampler(model, tokenizer, max_batch_size=config.batch_size, max_batch_tokens=config.batch_tokens)
    samples = sample_shares(rank, context.work, sampler, prompts, params, config.batch_size)
    if samples is None:
        return StageResult()
    for item, own in zip(items, samples, strict=True):
        require_finite(item, own)
    sequences = [[*prompt, *one.token_ids] for prompt, own in zip(prompts, samples, strict=True) for one in own]
    several = len(judges) > 1  # which differ in scale
    rewards_MN = member_rewards(
        judges, sequences, tokenizer.pad_token_id, config.batch_size, config.dtype, normalize=several
    )
    rewards_MIN = rewards_MN.reshape(len(judges), len(items), config.num_samples)
    sampled = [
        sampled_item(item, prompt, own, rewards_MIN[:, place], config.ensemble)
        for place, (item, prompt, own) in enumerate(zip(items, prompts, samples, strict=True))
    ]

    write_samples(context.output / "samples.parquet", sampled)
    curve = curve_figures(sampled, config.resamples, config.confidence, context.spec.seed)
    curve["ensemble"] = ensemble_figures(
        sampled, config.ensemble.penalty, config.resamples, config.confidence, context.spec.seed
    )
    calibration = calibration_figures(sampled, config.max_risk, config.confidence, context.spec.seed)
    write_json_atomic(context.output / "curve.json", curve | {"too_long": too_long})
    write_json_atomic(context.output / "calibration.json", calibration)
    write_table(context.output / "curve.csv", curve)
    write_figures(context.output, curve, calibration)
    tokens = sum(sum(item.tokens) for item in sampled)
    return _result(curve, calibration, tokens)


def sampled_item(
    item: EvaluationItem,
    prompt: Sequence[int],
    samples: Sequence[Sample],
    rewards: ArrayLike,
    ensemble: EnsembleConfig,
) -> SampledItem:
    """Return an item's samples with all scores; ``rewards`` are those of each reward model for each sample.

    A `choice` item's labels are taken in alphabetical order, so that the vote cannot know which one is right.
    """
    extract = extractor(item.scorer, sorted(item.reference.split("|")))
    texts = [sample.text for sample in samples]  # behind the reasoning
    preference = None
    if item.ideal is not None:
        preference = [preference_score(text, item.reference, item.scorer, item.ideal) for text in texts]
    return SampledItem(
        id=item.id,
        task=item.task,
        language=item.language,
        prompt_tokens=len(prompt),
        responses=[sample.response for sample in samples],
        texts=texts,
        answers=[extract(sample.text) if sample.answered else None for sample in samples],
        tokens=[len(sample.token_ids) for sample in samples],
        reasoning_tokens=[sample.reasoning_tokens for sample in samples],
        ended=[sample.ended for sample in samples],
        logprobs=[answer_logprob(sample) for sample in samples],
        rewards=combined(rewards, ensemble.combine, ensemble.penalty).tolist(),
        member_rewards=np.asarray(rewards, dtype=np.float64).tolist(),
        correct=[score(item.scorer, text, item.reference) for text in texts],
        preference=preference,
    )


def write_samples(path: Path, items: Sequence[SampledItem]) -> None:
    """Write one row per item, its samples as lists."""
    pq.write_table(pa.Table.from_pylist([dataclasses.asdict(item) for item in items]), path)


def write_table(path: Path, curve: dict[str, Any]) -> None:
    """Write the curve as a table: one row per number of samples, selector and measure."""
    columns = ["samples", "new_tokens", "measure", "selector", "value", "low", "high", "gain", "gain_low", "gain_high"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for measure, selectors in curve["curves"].items():
            for place, cost in enumerate(curve["cost"]):
                for selector in SELECTORS:
                    point = selectors[selector][place]
                    bounds = ("value", "low", "high")
                    figures = [f"{interval[bound]:.4f}" for interval in (point, point["gain"]) for bound in bounds]
                    writer.writerow([cost["k"], f"{cost['new_tokens']:.1f}", measure, selector, *figures])


def write_figures(directory: Path, curve: dict[str, Any], calibration: dict[str, Any]) -> None:
    """Write every figure as SVG."""
    figures = {
        "curve": selection_plots.selection_curves(curve, "curve"),
        "reliability": selection_plots.reliability(calibration, "reliability"),
        "risk_coverage": selection_plots.risk_coverage(calibration, "risk"),
    }
    if curve["over_optimisation"] is not None:
        figures["over_optimisation"] = selection_plots.over_optimisation(curve, "proxy")
    if curve["ensemble"] is not None:
        figures["ensemble"] = selection_plots.ensemble(curve, "ensemble")
    for name, svg in figures.items():
        (directory / f"{name}.svg").write_text(svg, encoding="utf-8")


def _result(curve: dict[str, Any], calibration: dict[str, Any], tokens: int) -> StageResult:
    correct = curve["curves"]["correct"]
    metrics: dict[str, Any] = {"items": curve["items"], "samples": curve["sizes"][-1]}
    metrics["one"] = correct["oracle"][0]["value"]
    metrics |= {selector: correct[selector][-1]["value"] for selector in SELECTORS}
    metrics |= {
        f"calibration_error/{name}": found["calibration_error"] for name, found in calibration["confidences"].items()
    }
    best = max(("logprob", "reward", "majority"), key=lambda selector: metrics[selector])
    headline = f"best of {metrics['samples']} by {best}: {metrics['one']:.2f} → {metrics[best]:.2f}"
    return StageResult(metrics=metrics, headline=headline, tokens=tokens)


if __name__ == "__main__":
    stage_main(run, BestOfNConfig, kind="selection")
