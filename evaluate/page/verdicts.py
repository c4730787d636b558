"""Verdicts of gates, for the head of the page; and exact match by task and language as a table of shades."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from posttrain.evaluate.page.compare import Policy
from posttrain.evaluate.page.lineage import PARENT_MODEL, Lineage

WORDS = {"passed": "may be built upon", "failed": "must not be built upon", "underpowered": "too few items to tell"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a gate said of a model."""

    gate: str
    model: str
    """Its label."""
    state: str
    reasons: list[str]
    findings: list[dict[str, Any]]
    worse: dict[str, list[dict[str, Any]]]
    """Items that got worse, by the metric that fell."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without the items."""
        return {"model": self.model, "state": self.state, "reasons": self.reasons, "findings": self.findings}


def verdicts_of(lineage: Lineage) -> list[Verdict]:
    """Return the verdicts of a lineage, those of earlier models first."""
    labels = lineage.labels()
    found = []
    for node in lineage.of_kind("verdict"):
        assert node.directory is not None
        said = json.loads((node.directory / "verdict.json").read_text(encoding="utf-8"))
        model = lineage.nodes[node.parents["after"]].parents.get(PARENT_MODEL)
        name = said["model"] if model is None else labels[model]
        found.append(Verdict(labels[node.id], name, said["state"], said["reasons"], said["findings"], said["worse"]))
    return found


def verdict_line(verdicts: Sequence[Verdict]) -> str:
    """Return the sentence at the head of the page: what failed first, then what cannot be told, then what passed."""
    parts = []
    for state, word in (("failed", "failed"), ("underpowered", "has too few items to tell"), ("passed", "passed")):
        names = [verdict.model for verdict in verdicts if verdict.state == state]
        if names:
            parts.append(f"{', '.join(names)} {word}")
    return "; ".join(parts)


@dataclasses.dataclass(frozen=True)
class Shade:
    """One cell: exact match of a policy in a task and language."""

    value: float
    low: float
    high: float
    percent: int
    """How far the cell is filled."""


def shades(policies: Sequence[Policy]) -> dict[str, dict[str, list[Shade | None]]]:
    """Return exact match by task and language, a list of one cell for each policy."""
    tables = [(policy.figures or {})["by_task_and_language"] for policy in policies if policy.figures is not None]
    tasks = sorted({task for table in tables for task in table})
    languages = sorted({language for table in tables for own in table.values() for language in own})
    return {
        task: {language: [_shade(table.get(task, {}).get(language)) for table in tables] for language in languages}
        for task in tasks
    }


def _shade(figures: dict[str, Any] | None) -> Shade | None:
    if figures is None:
        return None
    match = figures["exact_match"]
    return Shade(match["value"], match["low"], match["high"], round(100 * match["value"]))
