"""Write one page that says what every stage did: lineage, curves, before and after, rows, samples, provenance.

python -m posttrain.evaluate.report inputs.base=DIR inputs.sft=DIR inputs.dpo=DIR output=DIR
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from posttrain.evaluate import drift_plots, plots, selection_plots
from posttrain.evaluate.accounting import Account, read_account
from posttrain.evaluate.compare import (
    Policy,
    compare,
    compare_groups,
    consecutive,
    policies_of,
    reward_models_of,
    select_samples,
)
from posttrain.evaluate.config import ReportConfig
from posttrain.evaluate.drift_rows import Drift, by_reference, drifts_of
from posttrain.evaluate.lineage import MODEL_KINDS, PARENT_MODEL, Lineage, Node, walk
from posttrain.evaluate.lineage_svg import lineage_svg
from posttrain.evaluate.training_logs import read_curves, read_rollouts
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

METRIC_NAMES = {"exact_match": "exact match", "preference": "preference"}
LONGEST_SAMPLE = 1500
"""Characters of a prompt or response that the page shows."""


def run(config: ReportConfig, context: Context) -> StageResult:
    """Write report.html and summary.json."""
    if not context.inputs:
        raise UsageError("evaluate.report: nothing to report on; give inputs.NAME=DIR for scores, models or datasets")
    lineage = walk(context.inputs.values())
    policies = policies_of(lineage, config.confidence)
    settings = (config.confidence, config.resamples, context.spec.seed)
    steps = consecutive(lineage, policies)
    paired = [row for before, after in steps for row in compare(before, after, *settings)]
    by_group = {
        group: [row for before, after in steps for row in compare_groups(before, after, group, *settings)]
        for group in ("task", "language")
    }
    drifts = drifts_of(lineage, *settings)
    rewards = reward_models_of(lineage)
    accounts = _accounts(lineage)
    summary = {
        "confidence": config.confidence,
        "policies": {policy.label: _policy_summary(policy) for policy in policies},
        "paired": paired,
        "paired_by_task": by_group["task"],
        "paired_by_language": by_group["language"],
        "drift": {drift.label: drift.as_dict() for drift in drifts},
        "reward": rewards,
        "stages": [_stage_summary(lineage, node) for node in lineage.nodes.values()],
        "accounting": {account.label: account.as_dict() for account in accounts},
    }
    write_json_atomic(context.output / "summary.json", summary)
    page = render_page(
        title=context.spec.pipeline,
        confidence=config.confidence,
        lineage=lineage,
        policies=policies,
        paired=paired,
        by_group=by_group,
        drifts=drifts,
        rewards=rewards,
        accounts=accounts,
        samples=select_samples(policies, config.samples, context.spec.seed),
    )
    (context.output / "report.html").write_text(page, encoding="utf-8")
    headline = headline_of(paired, policies, drifts, rewards)
    return StageResult(metrics={"policies": len(policies), "reward_models": len(rewards)}, headline=headline)


def headline_of(
    paired: list[dict[str, Any]], policies: list[Policy], drifts: list[Drift], rewards: dict[str, Any]
) -> str:
    """Return the figure that sums the report up: the last step's gain in preference, or the best there is instead."""
    if paired:
        last = [row for row in paired if row["after"] == paired[-1]["after"]]
        row = next((row for row in last if row["metric"] == "preference"), last[-1])
        change = f"{row['difference']:+.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        return f"{row['after']} over {row['before']}: {METRIC_NAMES[row['metric']]} {change}"
    gains = {drift.label: drift.change["score"]["value"] for drift in drifts if drift.change is not None}
    if gains:
        who = f"{len(gains)} policies" if len(gains) > 1 else next(iter(gains))
        ends = dict.fromkeys((min(gains.values()), max(gains.values())))
        return f"{who} over {' and '.join(by_reference(drifts))}: mean score {' to '.join(map('{:+.2f}'.format, ends))}"
    if policies and policies[-1].figures is not None:
        return f"{policies[-1].label}: exact match {policies[-1].figures['overall']['exact_match']['value']:.2f}"
    if rewards:
        label, reward = next(iter(rewards.items()))
        return f"{label}: accuracy {reward['overall']['accuracy']['value']:.2f}"
    return "report"


def _policy_summary(policy: Policy) -> dict[str, Any]:
    return {"model": Path(policy.model).name, "loss": policy.loss, "items": policy.figures, "too_long": policy.too_long}


def _stage_summary(lineage: Lineage, node: Node) -> dict[str, Any]:
    manifest = node.manifest
    row: dict[str, Any] = {
        "name": node.name,
        "stage": node.stage,
        "kind": node.kind,
        "key": node.key,
        "parents": {name: lineage.nodes[parent].name for name, parent in node.parents.items()},
    }
    if manifest is not None:
        row |= {"seconds": manifest.wall_seconds, "tokens": manifest.tokens, "headline": manifest.headline}
        row |= {"metrics": manifest.metrics, "seed": manifest.seed, "created": manifest.created}
    return row


def _accounts(lineage: Lineage) -> list[Account]:
    labels = lineage.labels()
    found = [
        read_account(node.directory, labels[node.id], node.kind)
        for node in lineage.of_kind("dataset", "tokens")
        if node.directory is not None
    ]
    return [account for account in found if account is not None]


def render_page(
    title: str,
    confidence: float,
    lineage: Lineage,
    policies: list[Policy],
    paired: list[dict[str, Any]],
    by_group: dict[str, list[dict[str, Any]]],
    drifts: list[Drift],
    rewards: dict[str, dict[str, Any]],
    accounts: list[Account],
    samples: list[list[Any]],
) -> str:
    """Return the page as one HTML text that loads nothing. All values are escaped; figures are inline SVG."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "clip": clip, "signed": signed, "decimal": decimal, "count": count}
    template = environment.get_template("report.html.j2")
    labels = lineage.labels()
    anchors = {node_id: f"stage-{index}" for index, node_id in enumerate(lineage.nodes)}
    return template.render(
        title=title,
        percent=f"{confidence:.0%}" if confidence * 100 % 1 == 0 else f"{confidence:.1%}",
        headline=headline_of(paired, policies, drifts, rewards),
        nodes=list(lineage.nodes.values()),
        labels=labels,
        anchors=anchors,
        lineage_figure=Markup(lineage_svg(lineage, anchors)),
        policies=policies,
        answering=[policy for policy in policies if policy.figures is not None],
        bars=_bar_figures(policies),
        paired=paired,
        by_group={group: _pivot(rows, group) for group, rows in by_group.items()},
        metric_names=METRIC_NAMES,
        drifts=by_reference(drifts),
        drift_figures=_drift_figures(drifts),
        selections=_selections(lineage, labels),
        selectors=selection_plots.SELECTOR_NAMES,
        rewards=rewards,
        calibration={
            label: Markup(plots.reliability(reward["calibration"], f"calibration{index}"))
            for index, (label, reward) in enumerate(rewards.items())
        },
        curves=_curve_figures(lineage, labels),
        accounts=accounts,
        samples=samples,
        licenses=sorted({name for node in lineage.nodes.values() if node.manifest for name in node.manifest.licenses}),
        environments=_environments(lineage, labels),
    )


def _pivot(rows: list[dict[str, Any]], group: str) -> dict[str, Any]:
    """Return `compare_groups` rows as a table: a row for each group, a column for each step and metric."""
    table: dict[str, Any] = {"steps": [], "metrics": [], "rows": {}}
    for row in rows:
        step = (row["before"], row["after"])
        if step not in table["steps"]:
            table["steps"].append(step)
        if row["metric"] not in table["metrics"]:
            table["metrics"].append(row["metric"])
        table["rows"].setdefault(row[group], {})[*step, row["metric"]] = row
    return table


def _bar_figures(policies: list[Policy]) -> dict[str, list[Markup]]:
    """Return for exact match and preference one figure over tasks and one over languages."""
    figures: dict[str, list[Markup]] = {}
    answering = [policy for policy in policies if policy.figures is not None]
    for metric, label in METRIC_NAMES.items():
        for part in ("by_task", "by_language"):
            series = {
                policy.label: {
                    group: values[metric]
                    for group, values in (policy.figures or {})[part].items()
                    if values[metric] is not None
                }
                for policy in answering
            }
            groups = sorted({group for values in series.values() for group in values})
            if groups:
                svg = plots.grouped_bars(label, groups, series, f"bars-{metric}-{part}")
                figures.setdefault(metric, []).append(Markup(svg))
    return figures


def _drift_figures(drifts: list[Drift]) -> dict[str, Markup]:
    return {
        reference: Markup(drift_plots.score_by_kl(own, f"drift{index}"))
        for index, (reference, own) in enumerate(by_reference(drifts).items())
    }


def _selections(lineage: Lineage, labels: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the curve of each policy that was sampled many times, by its label, with the figures."""
    found = {}
    for index, node in enumerate(lineage.of_kind("selection")):
        assert node.directory is not None
        curve, calibration = (
            json.loads((node.directory / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("curve", "calibration")
        )
        svgs = [
            selection_plots.selection_curves(curve, f"selection{index}"),
            selection_plots.risk_coverage(calibration, f"risk{index}"),
        ]
        if curve["over_optimisation"] is not None:
            svgs.insert(1, selection_plots.over_optimisation(curve, f"proxy{index}"))
        label = labels[node.parents[PARENT_MODEL]]
        label = label if label not in found else f"{label} ({labels[node.id]})"
        found[label] = {"curve": curve, "figures": [Markup(svg) for svg in svgs]}
    return found


def _curve_figures(lineage: Lineage, labels: dict[str, str]) -> dict[str, list[Markup]]:
    figures = {}
    for index, node in enumerate(lineage.of_kind(*MODEL_KINDS)):
        assert node.directory is not None
        panels = enumerate(read_curves(node.directory))
        svgs = [
            Markup(plots.curves(panel.title, panel.y_label, lines, f"curves{index}-{n}"))
            for n, (panel, lines) in panels
        ]
        if rollouts := read_rollouts(node.directory):
            svgs.insert(0, Markup(drift_plots.rollout_path(*rollouts, f"rollouts{index}")))
        if svgs:
            figures[labels[node.id]] = svgs
    return figures


def _environments(lineage: Lineage, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Return each distinct set of package versions and hardware, with the stages that ran in it."""
    found: dict[str, dict[str, Any]] = {}
    for node in lineage.nodes.values():
        if node.manifest is not None:
            shown = {"packages": node.manifest.packages, "hardware": node.manifest.hardware}
            entry = found.setdefault(json.dumps(shown, sort_keys=True), {**shown, "stages": []})
            entry["stages"].append(labels[node.id])
    return list(found.values())


def duration(seconds: float) -> str:
    """Return a time for people: ``4.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clip(text: str) -> str:
    """Return a text cut to `LONGEST_SAMPLE` characters, saying how many are left out."""
    if len(text) <= LONGEST_SAMPLE:
        return text
    return f"{text[:LONGEST_SAMPLE]} … ({len(text) - LONGEST_SAMPLE:,} more characters)"


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign: ``+0.120``, ``−0.030``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with a fixed count of digits after the point."""
    return f"{value:.{digits}f}".replace("-", "−")


def count(value: float) -> str:
    """Return a number with thousands set apart."""
    return f"{value:,.0f}".replace(",", "\u202f")


if __name__ == "__main__":
    stage_main(run, ReportConfig, kind="report")
