"""The report's page: tables, inline figures and samples, as one HTML text that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from posttrain.evaluate.measure.sourced import FIGURES
from posttrain.evaluate.page.accounting import Account
from posttrain.evaluate.page.browser import Browser, browser_of
from posttrain.evaluate.page.compare import METRIC_NAMES, Policy
from posttrain.evaluate.page.drift_rows import Drift, by_reference
from posttrain.evaluate.page.figures import drift_plots, plots, selection_plots
from posttrain.evaluate.page.heat import heat_maps
from posttrain.evaluate.page.judgement_rows import judgements_of
from posttrain.evaluate.page.lineage import MODEL_KINDS, PARENT_MODEL, Lineage
from posttrain.evaluate.page.lineage_svg import lineage_svg
from posttrain.evaluate.page.narrow import label_cells
from posttrain.evaluate.page.templates import page_environment, percent
from posttrain.evaluate.page.training_logs import read_curves, read_rollouts
from posttrain.evaluate.page.verdicts import WORDS, Verdict, verdict_line


def headline_of(
    paired: list[dict[str, Any]],
    policies: list[Policy],
    drifts: list[Drift],
    rewards: dict[str, Any],
    lineage: Lineage,
) -> str:
    """Return the figure that sums the report up: the last step's gain in preference, or the best there is instead.

    Where nothing was compared, it says what was made, and that it was not.
    """
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
    if policies and policies[-1].loss is not None:
        return f"{policies[-1].label}: held-out loss {policies[-1].loss['overall']['loss']:.3f}; nothing was compared"
    return _made(lineage)


def _made(lineage: Lineage) -> str:
    """Return what the last model came to, or how many rows were kept, where nothing was evaluated."""
    labels = lineage.labels()
    models = [node for node in lineage.of_kind(*MODEL_KINDS) if node.manifest is not None]
    if models:
        said = models[-1].manifest.headline if models[-1].manifest is not None else ""
        return f"{labels[models[-1].id]} was made{': ' + said if said else ''}; it was not evaluated"
    data = lineage.of_kind("dataset", "tokens", "sources")
    if data:
        said = data[-1].manifest.headline if data[-1].manifest is not None else ""
        return f"{labels[data[-1].id]} was made{': ' + said if said else ''}; no model was"
    return "nothing was compared"


def render_page(
    title: str,
    confidence: float,
    lineage: Lineage,
    policies: list[Policy],
    paired: list[dict[str, Any]],
    by_group: dict[str, list[dict[str, Any]]],
    drifts: list[Drift],
    rewards: dict[str, dict[str, Any]],
    alike: list[list[str]],
    verdicts: list[Verdict],
    accounts: list[Account],
    data_pages: dict[str, str],
    samples: list[list[Any]],
    most_items: int,
) -> str:
    """Return the page as one HTML text that loads nothing. All values are escaped; figures are inline SVG."""
    template = page_environment().get_template("report.html.j2")
    labels = lineage.labels()
    anchors = {node_id: f"stage-{index}" for index, node_id in enumerate(lineage.nodes)}
    page = template.render(
        title=title,
        confidence=confidence,
        percent=percent(confidence),
        headline=headline_of(paired, policies, drifts, rewards, lineage),
        verdicts=verdicts,
        verdict_line=verdict_line(verdicts),
        verdict_words=WORDS,
        heat=heat_maps(policies),
        nodes=list(lineage.nodes.values()),
        labels=labels,
        anchors=anchors,
        lineage_figure=Markup(lineage_svg(lineage, anchors)),
        policies=policies,
        answering=[policy for policy in policies if policy.figures is not None],
        bars=_bar_figures(policies),
        paired=paired,
        by_group={group: _steps(rows, group) for group, rows in by_group.items()},
        metric_names=METRIC_NAMES,
        source_figures=FIGURES,
        drifts=by_reference(drifts),
        drift_figures=_drift_figures(drifts),
        selections=_selections(lineage, labels),
        selectors=selection_plots.SELECTOR_NAMES,
        ensemble_names=selection_plots.ENSEMBLE_NAMES,
        rewards=rewards,
        alike=alike,
        judgements=judgements_of(lineage),
        calibration=_calibration_figures(rewards),
        curves=_curve_figures(lineage, labels),
        accounts=accounts,
        data_pages=data_pages,
        samples=samples,
        browser=_browser(policies, most_items),
        licenses=sorted({name for node in lineage.nodes.values() if node.manifest for name in node.manifest.licenses}),
        environments=_environments(lineage, labels),
    )
    return label_cells(page)


def _calibration_figures(rewards: Mapping[str, dict[str, Any]]) -> dict[str, Markup]:
    return {
        label: Markup(plots.reliability(reward["calibration"], f"calibration{index}"))
        for index, (label, reward) in enumerate(rewards.items())
    }


def _browser(policies: list[Policy], most: int) -> Browser | None:
    answering = [policy for policy in policies if policy.items]
    return browser_of([("", [one.label for one in answering], [one.items for one in answering])], most)


def _steps(rows: list[dict[str, Any]], group: str) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Return `compare_groups` rows by step, then by group, then by metric: as wide for many steps as for one."""
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["before"], row["after"]), {}).setdefault(row[group], {})[row["metric"]] = row
    return table


def _bar_figures(policies: list[Policy]) -> dict[str, list[Markup]]:
    """Return for exact match and preference one figure over tasks and one over languages.

    There are none of more policies than there are colours.
    """
    figures: dict[str, list[Markup]] = {}
    answering = [policy for policy in policies if policy.figures is not None]
    if len(answering) > len(plots.PALETTE):
        return figures
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


def _drift_figures(drifts: list[Drift]) -> dict[str, list[Markup]]:
    figures = {}
    for index, (reference, own) in enumerate(by_reference(drifts).items()):
        svgs = [drift_plots.score_by_kl(own, f"drift{index}"), drift_plots.gold_and_proxy(own, f"gold{index}")]
        figures[reference] = [Markup(svg) for svg in svgs if svg is not None]
    return figures


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
        if curve.get("ensemble"):
            svgs.insert(2, selection_plots.ensemble(curve, f"ensemble{index}"))
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
