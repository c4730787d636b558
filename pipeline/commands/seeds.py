"""Runs that differ in their seeds alone: the mean of each figure over them, and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory, read_stages
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.artifact import Manifest
from posttrain.stage.files import canonical_json
from posttrain.stage.spec import StageSpec

_ROLLOUTS = ("objective/scores", "objective/kl")
FIGURES = {
    "sample.rank": ("score", "best_score"),
    "sample.generate": ("responses", "score"),
    "train.sft": ("eval_loss",),
    "train.reward": ("eval_accuracy",),
    "train.dpo": ("eval_rewards/accuracies", "eval_rewards/margins"),
    "train.kto": ("eval_rewards/margins",),
    "train.ppo": _ROLLOUTS,
    "train.rloo": _ROLLOUTS,
    "train.grpo": _ROLLOUTS,
    "evaluate.policy": ("exact_match", "preference", "loss"),
    "evaluate.reward": ("accuracy",),
    "evaluate.best_of_n": ("one", "logprob", "reward", "majority"),
    "evaluate.drift": ("score", "kl"),
    "evaluate.judge": ("win_rate", "length_controlled", "kappa"),
}
"""Stage type → the metrics that sum up what it made."""


def print_over_seeds(runs: Mapping[str, RunDirectory]) -> None:
    """Print a table for each group of runs, by label, that differ in their seeds alone; a run by itself has none."""
    for group in by_all_but_seeds(runs).values():
        made = [made_by(run) for run in group.values()]
        rows = spread_of(made) if len(made) > 1 else []
        if rows:
            shared = [word for word in next(iter(group)).split() if all(word in label.split() for label in group)]
            title = " ".join([f"over {len(group)} seeds,", *shared, "mean and 95 % interval (Student's t)"])
            table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
            for heading in ("stage", "figure", "mean", "interval", "each"):
                table.add_column(heading, overflow="fold")
            for row in rows:
                table.add_row(*map(escape, row))
            console_for_tables().print(table)


def by_all_but_seeds(runs: Mapping[str, RunDirectory]) -> dict[str, dict[str, RunDirectory]]:
    """Return groups of runs, by label, that differ in their seeds alone."""
    groups: dict[str, dict[str, RunDirectory]] = {}
    for label, run in runs.items():
        groups.setdefault(canonical_json(_without_seeds(read_stages(run))), {})[label] = run
    return groups


def spread_of(runs: list[dict[str, Manifest]]) -> list[tuple[str, str, str, str, str]]:
    """Return stage, figure, mean, interval and the values of each figure that was computed anew in every run.

    What runs share says nothing of seeds; a stage that one of them lacks is left out.
    """
    from posttrain.evaluate.measure.statistics import mean_interval

    rows = []
    for stage, first in runs[0].items():
        made = [manifests[stage] for manifests in runs if stage in manifests]
        if len({manifest.key for manifest in made}) < len(runs):
            continue
        for name in FIGURES.get(first.run, ()):
            values = [manifest.metrics.get(name) for manifest in made]
            numbers = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
            if len(numbers) == len(made):
                found = mean_interval(numbers)
                interval = f"[{found.low:.4g}, {found.high:.4g}]"
                rows.append((stage, name, f"{found.value:.4g}", interval, ", ".join(f"{one:.4g}" for one in numbers)))
    return rows


def _without_seeds(stages: dict[str, Any]) -> dict[str, Any]:
    return {name: {key: value for key, value in facts.items() if key != "seed"} for name, facts in stages.items()}


def made_by(run: RunDirectory) -> dict[str, Manifest]:
    """Return the manifest of each stage of a run that is made."""
    paths = {stage: run.spec(stage) for stage in read_stages(run)}
    made = {stage: committed(StageSpec.read(path)) for stage, path in paths.items() if path.exists()}
    return {stage: found.manifest for stage, found in made.items() if found is not None}
