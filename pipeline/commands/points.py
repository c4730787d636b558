"""The points of a sweep beside each other: the figures in which they differ, and which point has the best of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.commands.seeds import FIGURES, by_all_but_seeds, made_by, print_over_seeds
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.pipeline.watch.progress import console_for_tables

LESS_IS_BETTER = {"loss", "eval_loss"}
NEITHER_IS_BETTER = {"kl", "objective/kl", "eval_rewards/margins"}
MOST_COLUMNS = 6
Figure = tuple[str, str]
"""Stage and metric."""


def print_sweep(runs: Mapping[str, RunDirectory]) -> None:
    """Print what the runs of a sweep came to, by label: over their seeds, and point beside point."""
    print_over_seeds(runs)
    groups = [group for group in by_all_but_seeds(runs).values() if any(map(made_by, group.values()))]
    if len(groups) < 2:
        return
    figures = {_label(group): _figures(group) for group in groups}
    columns = _told_apart(list(figures.values()))[-MOST_COLUMNS:]
    if not columns:
        return
    best = {figure: _best(figure, figures) for figure in columns}
    table = Table(title="point by point; * is the best", title_justify="left", box=None, pad_edge=False)
    table.add_column("point", overflow="fold")
    for stage, name in columns:
        table.add_column(escape(f"{stage}\n{name}"), justify="right", overflow="fold")
    for label, found in figures.items():
        cells = [f"{'*' if best[figure] == label else ''}{found[figure]:.4g}" for figure in columns]
        table.add_row(escape(label), *cells)
    console = console_for_tables()
    console.print(table)
    console.print("a best point may be so by chance: `posttrain compare` pairs two runs item by item", style="dim")


def _label(group: Mapping[str, RunDirectory]) -> str:
    """Return what the labels of a group have in common, which leaves their seeds out."""
    first = next(iter(group))
    shared = [word for word in first.split() if all(word in label.split() for label in group)]
    return " ".join(shared) or first


def _figures(group: Mapping[str, RunDirectory]) -> dict[Figure, float]:
    """Return the mean over seeds of each figure that every run of a group has."""
    made = [made_by(run) for run in group.values()]
    found: dict[Figure, list[float]] = {}
    for manifests in made:
        for stage, manifest in manifests.items():
            for name in FIGURES.get(manifest.run, ()):
                value = manifest.metrics.get(name)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    found.setdefault((stage, name), []).append(float(value))
    return {figure: fmean(values) for figure, values in found.items() if len(values) == len(made)}


def _told_apart(figures: list[dict[Figure, float]]) -> list[Figure]:
    """Return the figures that every point has and in which some differ: those of evaluations where there are any."""
    shared = [figure for figure in figures[0] if all(figure in found for found in figures)]
    differing = [figure for figure in shared if len({found[figure] for found in figures}) > 1]
    judged = [(stage, name) for stage, name in differing if stage.startswith("evaluate")]
    return judged or differing


def _best(figure: Figure, figures: Mapping[str, dict[Figure, float]]) -> str | None:
    """Return the label of the point with the best value of a figure; None where more is neither better nor worse."""
    _, name = figure
    if name in NEITHER_IS_BETTER:
        return None
    choose = min if name in LESS_IS_BETTER else max
    return choose(figures, key=lambda label: figures[label][figure])
