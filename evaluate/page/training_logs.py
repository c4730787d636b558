"""Training curves out of a stage's metrics.jsonl, gathered into the panels of a figure."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluate.page.figures.plots import Curve
from posttrain.stage.tracking import logged_metrics

_HELD_OUT = re.compile(r"^eval[_/]")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure: the metrics whose names, without the mark of the held-out split, match a pattern."""

    title: str
    y_label: str
    pattern: re.Pattern[str]


PANELS = (
    Panel("Loss", "loss", re.compile(r"^loss$")),
    Panel("Pair accuracy", "share of pairs ranked right", re.compile(r"^(rewards/)?accurac(y|ies)$")),
    Panel("Reward margin", "chosen − rejected", re.compile(r"^(rewards/)?margins?$")),
    Panel("Rewards", "reward", re.compile(r"^rewards/(chosen|rejected)$|^(mean|min|max)_reward$")),
    Panel("Reference point", "nats per mismatched response", re.compile(r"^kl$")),
    Panel("Log-probability", "nats per response", re.compile(r"^logps/(chosen|rejected)$")),
    Panel("Token accuracy", "share of tokens", re.compile(r"^mean_token_accuracy$|^token_accuracy$")),
    Panel("Score of the rollouts", "reward", re.compile(r"^objective/scores$")),
    Panel("KL to the reference", "nats per response", re.compile(r"^objective/kl$")),
    Panel("Entropy", "nats per token", re.compile(r"^objective/entropy$")),
    Panel("Response length", "tokens", re.compile(r"^response/length$")),
    Panel("Gradient norm", "norm before clipping", re.compile(r"^grad_norm$")),
    Panel("Learning rate", "learning rate", re.compile(r"^learning_rate$")),
)


def read_curves(directory: Path) -> list[tuple[Panel, list[Curve]]]:
    """Return the panels that a stage's log has values for, each with its curves; none when there is no log."""
    return gather(logged_metrics(directory))


def gather(rows: Sequence[dict[str, Any]]) -> list[tuple[Panel, list[Curve]]]:
    """Return the panels of logged rows, each with its curves: training before held-out."""
    names = sorted({name for row in rows for name in row}, key=lambda name: (bool(_HELD_OUT.match(name)), name))
    found = []
    for panel in PANELS:
        matching = [name for name in names if panel.pattern.match(_HELD_OUT.sub("", name))]
        lines = [line for line in (_curve(rows, name) for name in matching) if line[1]]
        if lines:
            found.append((panel, lines))
    return found


def read_rollouts(directory: Path) -> tuple[list[float], list[float]] | None:
    """Return KL and score of a stage's rollouts as it logged them; None for a stage that has none."""
    names = ("objective/kl", "objective/scores")
    points = [[row[name] for name in names] for row in logged_metrics(directory) if all(name in row for name in names)]
    if not points:
        return None
    kls, scores = zip(*points, strict=True)
    return list(kls), list(scores)


def _curve(rows: Sequence[dict[str, Any]], name: str) -> Curve:
    points = [
        (row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    return _label(name), [step for step, _ in points], [value for _, value in points]


def _label(name: str) -> str:
    plain = _HELD_OUT.sub("", name)
    side = plain.rpartition("/")[2].replace("_", " ")
    split = "held-out" if _HELD_OUT.match(name) else "training"
    return f"{side}, {split}" if side in ("chosen", "rejected") or side.endswith(" reward") else split
