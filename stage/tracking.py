"""Metrics of a stage: always `metrics.jsonl`, and W&B beside it when it is wanted and works."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from posttrain.stage.artifact import LOGS, Manifest
from posttrain.stage.files import write_text_atomic

METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Receives scalars by step; the null object is `NullTracker`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record scalars of one step."""

    def rewind(self, step: int) -> None:
        """Forget everything after ``step``: training goes on from there."""

    def record(self, manifest: Manifest) -> None:
        """Take note of the committed artifact."""

    def finish(self) -> None:
        """Flush and close."""


class NullTracker:
    """Records nothing: the tracker of every rank but the first."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def rewind(self, step: int) -> None:
        """Do nothing."""

    def record(self, manifest: Manifest) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class JsonlTracker:
    """Appends ``{"step": …, "seconds": …, "time": …, metric: value, …}``; each step stands once even across restarts.

    ``seconds`` is since the start of the attempt, ``time`` since 1970.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line."""
        clocks = {"seconds": round(time.monotonic() - self._start, 3), "time": round(time.time(), 3)}
        line = {"step": step, **clocks, **metrics}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``, and a last line that a crash cut short."""
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def record(self, manifest: Manifest) -> None:
        """The artifact holds a copy of the file."""

    def finish(self) -> None:
        """Nothing is buffered."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, without a last line that a crash cut short."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def logged_metrics(artifact: Path) -> list[dict[str, Any]]:
    """Return what the training of an artifact logged; nothing for one that was not trained."""
    path = artifact / LOGS / METRICS
    return read_metrics(path) if path.is_file() else []
