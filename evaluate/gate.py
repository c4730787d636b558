"""Say whether a model may be built upon, by what evaluation found of it and of the model before.

python -m posttrain.evaluate.gate inputs.before=DIR inputs.after=DIR output=DIR target=preference margin=0.05

Both are artifacts of `evaluate.policy`, or of `evaluate.drift`, on the same items. The artifact is a verdict, whatever
it says; the launcher stops what depends on a model that failed, and leaves a record of promotion beside one that
passed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluate.config.gate import GateConfig
from posttrain.evaluate.measure.gating import (
    FELL,
    UNCLEAR,
    Finding,
    Metric,
    floor_of,
    guarded_metrics,
    judge_guarded,
    judge_target,
    planned_power,
    worst_items,
)
from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.measure.stored_items import stored_items
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)

PASSED, FAILED, UNDERPOWERED = "passed", "failed", "underpowered"
NOTHING = "neither items nor held-out rows were scored of both models"
NAMED_ITEMS = 5
"""Items that the reason names; the verdict's file has more."""


def run(config: GateConfig, context: Context) -> StageResult:
    """Write verdict.json: state, reasons, what became of each metric, and the items that got worse."""
    before, after = stored_items(context.inputs["before"]), stored_items(context.inputs["after"])
    if config.max_kl is not None and "drift" not in context.inputs:
        raise UsageError(
            f"evaluate.gate.max_kl={config.max_kl}: how far the policy went is not known; give inputs.drift"
        )
    failures: list[str] = []
    findings: list[Finding] = []
    worse: dict[str, list[dict[str, Any]]] = {}
    if before and after:
        findings, failures, worse = _judge_items(config, before, after, context.spec.seed)
        failures += _under_floors(config, after)
    losses = _losses(context)
    failures += _loss_failures(config, losses, needed=not findings)
    told = bool(findings) or losses is not None
    failures += _drift_failures(config, context)
    unsure = [one for one in findings if one.verdict == UNCLEAR and one.power < config.power]
    state = FAILED if failures else UNDERPOWERED if unsure or not told else PASSED
    weak = [f"{one.metric.name} (power {one.power:.0%} at {one.metric.margin:.2g})" for one in unsure]
    reasons = failures or ([f"too few items to tell of {', '.join(weak)}"] if unsure else [] if told else [NOTHING])
    blocks = config.mode == "block" and (state == FAILED or (state == UNDERPOWERED and config.strict))
    model = read_manifest(context.inputs["after"]).parents["model"].name
    verdict = {"state": state, "blocks": blocks, "reasons": reasons, "model": model, "confidence": config.confidence}
    verdict |= {"findings": [one.as_dict() for one in findings], "worse": worse}
    write_json_atomic(context.output / "verdict.json", verdict)
    reason = f"{model} {state}: {'; '.join(reasons)}" if reasons else f"{model} {state}"
    log.info(reason)
    metrics = {
        "passed": state == PASSED,
        "fell": sum(one.verdict == FELL for one in findings),
        "metrics": len(findings),
    }
    facts = {"model": model, "state": state, "blocks": blocks, "reason": reason}
    return StageResult(metrics=metrics, headline=f"{state}{': ' + reasons[0] if reasons else ''}", facts=facts)


def _judge_items(
    config: GateConfig, before: Sequence[ScoredItem], after: Sequence[ScoredItem], seed: int
) -> tuple[list[Finding], list[str], dict[str, list[dict[str, Any]]]]:
    """Return what became of target and guarded metrics, why that fails, and the items that got worse by metric."""
    guarded = guarded_metrics(
        before, config.guard, config.margin, config.margins, config.ended_margin, config.grounded_margin
    )
    powers = [planned_power(one, before, config.confidence, config.discordant, len(guarded)) for one in guarded]
    _say_power(config, guarded, powers)
    try:
        findings = judge_guarded(guarded, powers, before, after, config.confidence, seed)
    except ValueError as error:
        raise UsageError(f"evaluate.gate: {error}") from None
    fell = [one for one in findings if one.verdict == FELL]
    every = {one.metric.name: worst_items(one.metric, before, after) for one in fell}
    failures = [_fall(one, every[one.metric.name]) for one in fell]
    worse = {name: items[: config.worst_items] for name, items in every.items()}
    if config.target != "none":
        target = Metric(config.target.replace("_", " "), config.target, {}, config.target_rise)
        if not target.items(before) or not target.items(after):
            raise UsageError(f"evaluate.gate.target={config.target}: no item has one; use exact_match, or none")
        power = planned_power(target, before, config.confidence, config.discordant, 1)
        found = judge_target(target, power, before, after, config.confidence, seed)
        findings.insert(0, found)
        if found.verdict == FELL or (found.verdict == UNCLEAR and power >= config.power):
            failures.insert(0, f"target {target.name} did not rise: {_shift(found)}")
    return findings, failures, worse


def _under_floors(config: GateConfig, after: Sequence[ScoredItem]) -> list[str]:
    """Return which tasks and languages surely do not reach their floors."""
    try:
        found = {name: floor_of(name, after, config.confidence, len(config.floors)) for name in config.floors}
    except ValueError as error:
        raise UsageError(f"evaluate.gate.{error}") from None
    return [
        f"exact match in {name} is {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] on {one.n} items, "
        f"under its floor of {config.floors[name]:.2g}"
        for name, one in found.items()
        if one.high < config.floors[name]
    ]


def _say_power(config: GateConfig, metrics: Sequence[Metric], powers: Sequence[float]) -> None:
    for metric, power in zip(metrics, powers, strict=True):
        word = "underpowered" if power < config.power else "enough"
        log.info("power %.0f%% to see a fall of %.3g: %s (%s)", 100 * power, metric.margin, metric.name, word)


def _fall(finding: Finding, worse: Sequence[dict[str, Any]]) -> str:
    named = ", ".join(item["id"] for item in worse[:NAMED_ITEMS])
    more = f" and {len(worse) - NAMED_ITEMS} more" if len(worse) > NAMED_ITEMS else ""
    return f"{finding.metric.name} fell: {_shift(finding)}, margin {finding.metric.margin:.2g}; worse: {named}{more}"


def _shift(finding: Finding) -> str:
    change = finding.change
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}] on {change.n} items"


def _loss_failures(config: GateConfig, losses: tuple[float, float] | None, needed: bool) -> list[str]:
    """Return why the held-out loss fails, if it is known; without items, which is ``needed``, it is the target."""
    if losses is None:
        return []
    was, now = losses
    if needed and config.target != "none" and not now < was:
        return [f"held-out loss did not fall: {was:.3f} → {now:.3f}"]
    if config.max_loss_rise is not None and not now <= was + config.max_loss_rise:
        return [f"held-out loss rose: {was:.3f} → {now:.3f}, more than {config.max_loss_rise}"]
    return []


def _losses(context: Context) -> tuple[float, float] | None:
    """Return the held-out losses before and after, where both are known."""
    before, after = (_summary(context.inputs[name]).get("loss") for name in ("before", "after"))
    return (before["overall"]["loss"], after["overall"]["loss"]) if before and after else None


def _drift_failures(config: GateConfig, context: Context) -> list[str]:
    if config.max_kl is None:
        return []
    kl = _summary(context.inputs["drift"])["kl"]
    far = kl["low"] > config.max_kl
    return [
        f"KL from the reference {kl['value']:.2f} [{kl['low']:.2f}, {kl['high']:.2f}], more than {config.max_kl}"
    ] * far


def _summary(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return summary


if __name__ == "__main__":
    stage_main(run, GateConfig, kind="verdict")
