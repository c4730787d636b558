"""Figures by task and language as tables of shades, which the numbers in the cells tell as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from posttrain.evaluate.page.compare import METRIC_NAMES, Policy

ACROSS = 7
"""Policies beside each other, at most: what a page of 1,300 pixels has room for. More go into a table below."""


@dataclasses.dataclass(frozen=True)
class Shade:
    """One cell: a figure of a policy in a task and language."""

    value: float
    low: float
    high: float
    percent: int
    """How deep its colour is."""


@dataclasses.dataclass(frozen=True)
class Heat:
    """One table: for each task and language a cell, or none, of each policy."""

    labels: list[str]
    rows: dict[str, dict[str, list[Shade | None]]]


def heat_maps(policies: Sequence[Policy]) -> dict[str, list[Heat]]:
    """Return for each metric that policies have its tables, in the order of the policies."""
    answering = [policy for policy in policies if policy.figures is not None]
    blocks = [answering[start : start + ACROSS] for start in range(0, len(answering), ACROSS)]
    found = {}
    for metric in METRIC_NAMES:
        tables = [Heat([policy.label for policy in block], _rows(block, metric)) for block in blocks]
        if tables := [table for table in tables if table.rows]:
            found[metric] = tables
    return found


def _rows(policies: Sequence[Policy], metric: str) -> dict[str, dict[str, list[Shade | None]]]:
    tables = [(policy.figures or {})["by_task_and_language"] for policy in policies]
    tasks = sorted({task for table in tables for task in table})
    languages = sorted({language for table in tables for own in table.values() for language in own})
    rows: dict[str, dict[str, list[Shade | None]]] = {}
    for task in tasks:
        for language in languages:
            cells = [_shade(table.get(task, {}).get(language), metric) for table in tables]
            if any(cells):
                rows.setdefault(task, {})[language] = cells
    return rows


def _shade(figures: dict[str, Any] | None, metric: str) -> Shade | None:
    if figures is None or figures[metric] is None:
        return None
    own = figures[metric]
    return Shade(own["value"], own["low"], own["high"], round(100 * min(max(own["value"], 0.0), 1.0)))
