"""Verdicts of gates, for the head of the page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

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
