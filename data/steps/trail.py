"""What became of rows that did not stay as they came: `dropped.jsonl`, one JSON object a row, in the order of events.

``step`` and ``reason`` say why, ``what`` is dropped, changed or noted, ``lost_to`` names the duplicate, the item or the
rule with its value. A dropped row stands there itself; a changed one does not, since it would give away what was taken
out of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain.data.records import Record

FILE = "dropped.jsonl"

What = Literal["dropped", "changed", "noted"]
KEPT_OUT = ("id", "source", "split")
"""Fields of a record that stand beside its row, not in it."""


class Trail:
    """Collects what became of rows."""

    def __init__(self) -> None:
        self._entries: list[tuple[dict[str, Any], Record | None]] = []

    def add(self, what: What, step: str, reason: str, record: Record, lost_to: Mapping[str, Any]) -> None:
        """Note what became of one row, for one reason."""
        head = {"what": what, "step": step, "reason": reason, "id": record.id, "source": record.source}
        entry = {**head, "split": record.split, "lost_to": dict(lost_to)}
        self._entries.append((entry, record if what == "dropped" else None))

    def counts(self) -> dict[str, Counter[str]]:
        """Return the rows by step, and by reason."""
        found: dict[str, Counter[str]] = {}
        for entry, _ in self._entries:
            found.setdefault(entry["step"], Counter())[entry["reason"]] += 1
        return found

    def entries(self) -> Iterator[tuple[dict[str, Any], Record | None]]:
        """Yield every entry, and the row of those that dropped."""
        yield from self._entries


def row_of(record: Record) -> dict[str, Any]:
    """Return a record's payload as a JSON value; what it does not say is left out."""
    return record.model_dump(mode="json", exclude_none=True, exclude=set(KEPT_OUT))


def said(row: Mapping[str, Any]) -> str:
    """Return what the turns of a stored row say, as one text."""
    turns = [turn for name in ("prompt", "completion", "responses") for turn in row.get(name) or []]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def read_trail(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a dataset's trail, none where it has none."""
    path = directory / FILE
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
