"""The way of rows through curation: what each step took in, dropped by reason and source, and let on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

READ = "read"
BEFORE = ("split", "items", "duplicate")
"""What happens to rows between reading and the steps, in order."""

Event = tuple[str, str, str, str]
"""Step, what became of a row, reason, source."""
BySource = dict[str, dict[str, int]]
"""Reason → source → rows."""


@dataclasses.dataclass(frozen=True)
class FlowStep:
    """What one step made of the rows that reached it."""

    name: str
    rows_in: dict[str, int]
    """By source."""
    kept: dict[str, int]
    """By source."""
    dropped: BySource
    noted: BySource
    """Reasons for which rows changed, or stay and are counted."""
    facts: dict[str, Any]

    def total(self, what: str) -> int:
        """Return the rows of all sources that came ``rows_in``, or were ``kept``."""
        return sum(getattr(self, what).values())


def flow_of(account: Mapping[str, Any], events: Counter[Event]) -> list[FlowStep]:
    """Return every step that rows went through, in order, from a dataset's accounting and the events of its trail.

    What dropped without leaving a trail did so while it was read; without steps that is all that is known.
    """
    facts = {done["step"]: done.get("facts", {}) for done in account.get("flow", [])}
    before = [name for name in BEFORE if any(step == name for step, *_ in events)]
    rows = {source: own["rows_in"] for source, own in account["by_source"].items()}
    flow = []
    for name in (READ, *before, *facts):
        dropped, noted = _found(name, "dropped", account, events), _found(name, "noted", account, events)
        left = {source: count - sum(own.get(source, 0) for own in dropped.values()) for source, count in rows.items()}
        flow.append(FlowStep(name, rows, left, dropped, noted, facts.get(name, {})))
        rows = left
    return flow


def _found(name: str, what: str, account: Mapping[str, Any], events: Counter[Event]) -> BySource:
    found: BySource = {}
    if name == READ:
        told = {
            (reason, source): count
            for source, own in account["by_source"].items()
            for reason, count in own.get(what, {}).items()
        }
        for (_, kind, reason, source), count in events.items():
            if (kind == "dropped") == (what == "dropped"):
                told[reason, source] = told.get((reason, source), 0) - count
    else:
        told = {
            (reason, source): count
            for (step, kind, reason, source), count in sorted(events.items())
            if step == name and (kind == "dropped") == (what == "dropped")
        }
    for (reason, source), count in told.items():
        if count > 0:
            own = found.setdefault(reason, {})
            own[source] = own.get(source, 0) + count
    return dict(sorted(found.items(), key=lambda pair: (-sum(pair[1].values()), pair[0])))
