"""Two evaluations side by side: what the same items say of both, and in what the two are not alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.measure.stored_items import stored_items
from posttrain.evaluate.page.compare import Policy, compare, compare_groups
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.wording import differences

SPEED = ("batch_size", "scoring_tokens")
"""Knobs of evaluations that change no figure."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What paired statistics say of two evaluations."""

    name: str
    first: str
    """Label of one side."""
    second: str
    shared: int
    """Items that both answered."""
    only_first: int
    only_second: int
    other_question: int
    """Items that one id stands for, but whose prompts differ: they are left out."""
    asked_otherwise: list[str]
    """In what the knobs of the two evaluations differ."""
    overall: list[dict[str, Any]]
    """Rows of `compare`."""
    by_task: list[dict[str, Any]]
    by_language: list[dict[str, Any]]
    losses: tuple[float, float] | None
    """Held-out losses in nats per token, where both are on the same rows."""
    items: list[tuple[ScoredItem, ScoredItem]]
    """The shared items."""

    def notes(self) -> list[str]:
        """Return what is to be known of a comparison before its figures."""
        line = f"{self.shared} items that both answered"
        for count, what in (
            (self.only_first, f"items of {self.first} alone"),
            (self.only_second, f"items of {self.second} alone"),
            (self.other_question, "under one id but with another prompt"),
        ):
            if count:
                line += f"; {count} {what}, left out"
        lines = [line]
        if self.asked_otherwise:
            lines.append(f"not evaluated alike: {'; '.join(self.asked_otherwise)}")
        if self.losses is not None:
            was, now = self.losses
            lines.append(f"held-out loss {was:.4f} → {now:.4f} ({now - was:+.4f})")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without the items."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "items"}


def compare_evaluations(
    name: str,
    first: tuple[str, Path],
    second: tuple[str, Path],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two artifacts of `evaluate.policy` or `evaluate.drift`, each given with its label.

    Raises UsageError where they share no item.
    """
    sides = [{item.id: item for item in stored_items(directory)} for _, directory in (first, second)]
    both = [item_id for item_id in sides[1] if item_id in sides[0]]
    pairs = [(sides[0][item_id], sides[1][item_id]) for item_id in both]
    alike = [(one, other) for one, other in pairs if one.prompt == other.prompt]
    losses = _losses(first[1], second[1])
    if not alike and losses is None:
        names = " and ".join(directory.name for _, directory in (first, second))
        raise UsageError(
            f"compare: {names} share no item ({len(sides[0])} and {len(sides[1])}, {len(pairs)} of them under one id "
            "but with other prompts); give two that were asked the same items"
        )
    before = Policy(first[0], str(first[1]), [pair[0] for pair in alike], None, None, 0)
    after = Policy(second[0], str(second[1]), [pair[1] for pair in alike], None, None, 0)
    settings = (confidence, resamples, seed)
    return Comparison(
        name,
        first[0],
        second[0],
        len(alike),
        len(sides[0]) - len(both),
        len(sides[1]) - len(both),
        len(pairs) - len(alike),
        _asked_otherwise(first[1], second[1]),
        compare(before, after, *settings),
        compare_groups(before, after, "task", *settings),
        compare_groups(before, after, "language", *settings),
        losses,
        alike,
    )


def reading(row: dict[str, Any], confidence: float) -> str:
    """Return in words what a row of a comparison says; of many rows, by the p-value corrected for their number.

    That none was seen does not say that there is none: one under the row's `detectable` may hide.
    """
    seen = row["adjusted"] <= 1 - confidence if "adjusted" in row else not row["low"] <= 0 <= row["high"]
    if seen:
        return "higher" if row["difference"] > 0 else "lower"
    return "no difference seen"


def _asked_otherwise(first: Path, second: Path) -> list[str]:
    """Return in what two evaluations differ beside the model: the stage and its knobs."""
    knobs = []
    for manifest in (read_manifest(first), read_manifest(second)):
        own = {key: value for key, value in manifest.config.items() if key not in SPEED}
        knobs.append({"stage": manifest.run, **own})
    return differences(knobs[0], knobs[1])


def _losses(first: Path, second: Path) -> tuple[float, float] | None:
    data = [read_manifest(directory).parents.get("data") for directory in (first, second)]
    if data[0] is None or data[1] is None or data[0].digest != data[1].digest:
        return None
    found = [
        json.loads((directory / "summary.json").read_text(encoding="utf-8"))["loss"] for directory in (first, second)
    ]
    return (found[0]["overall"]["loss"], found[1]["overall"]["loss"]) if all(found) else None
