"""What became of rows that did not stay as they came: `dropped.jsonl`, one JSON object a row, in the order of events.

``step`` and ``reason`` say why, ``what`` is dropped, changed or noted, ``lost_to`` names the duplicate, the item or the
rule with its value. A dropped row stands there itself; a changed one does not, since it would give away what was taken
out of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from posttrain.data.records import Record

FILE = "dropped.jsonl"

What = Literal["dropped", "changed", "noted"]
KEPT_OUT = ("id", "source", "split")
"""Fields of a record that stand beside its row, not in it."""


class Trail:
    """Writes what becomes of rows, as it happens; without a path, nowhere."""

    def __init__(self, path: Path | None = None, hide: Callable[[Record], Record] = lambda record: record) -> None:
        self._file = None if path is None else path.open("w", encoding="utf-8")
        self._hide = hide
        """Makes of a row that drops what may be written of it."""

    def add(self, what: What, step: str, reason: str, record: Record, lost_to: Mapping[str, Any]) -> None:
        """Note what became of one row, for one reason."""
        if self._file is None:
            return
        head = {"what": what, "step": step, "reason": reason, "id": record.id, "source": record.source}
        entry: dict[str, Any] = {**head, "split": record.split, "lost_to": dict(lost_to)}
        if what == "dropped":
            entry["row"] = row_of(self._hide(record))
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def __enter__(self) -> Trail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


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
