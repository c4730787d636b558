"""How far a stage is, read from the end of its `metrics.jsonl`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.stage.heartbeat import RankBeat
from posttrain.stage.wording import duration

TAIL_BYTES = 8192


def latest_metrics(metrics_file: Path) -> str:
    """Return the last line of a `metrics.jsonl` in words: ``step 120 · loss 1.234``; empty when there is none."""
    row = last_row(metrics_file)
    shown = [f"step {row['step']}"] if "step" in row else []
    return " · ".join(filter(None, [*shown, _figures(row)]))


def last_row(metrics_file: Path) -> dict[str, Any]:
    """Return the last complete line of a `metrics.jsonl`, or nothing."""
    rows = last_rows(metrics_file)
    return rows[-1] if rows else {}


def last_rows(metrics_file: Path) -> list[dict[str, Any]]:
    """Return the last complete lines of a `metrics.jsonl`, reading only its end."""
    try:
        with metrics_file.open("rb") as file:
            size = file.seek(0, 2)
            start = file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")[1 if start else 0 : -1]
        rows = [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)]


@dataclasses.dataclass(frozen=True)
class HowFar:
    """How far a running stage is."""

    step: int | None = None
    """Optimizer steps done, as far as they are logged."""
    last_step: int | None = None
    figures: str = ""
    """What was logged last: ``loss 1.234``."""
    step_seconds: float | None = None
    """Of the present attempt; None until two steps are logged."""
    phase: str = ""
    """What it does, where it logs no steps."""

    @property
    def seconds_left(self) -> float | None:
        """How long its remaining steps will take at the present rate; None where that is not known."""
        if self.step is None or self.last_step is None or self.step_seconds is None:
            return None
        return max(0, self.last_step - self.step) * self.step_seconds

    def rate(self) -> str:
        """Return how fast it gets on: ``3.2 steps/s``, ``4.1 s/step``, or nothing."""
        if not self.step_seconds:
            return ""
        return f"{1 / self.step_seconds:.3g} steps/s" if self.step_seconds < 1 else f"{self.step_seconds:.3g} s/step"

    def left(self) -> str:
        """Return how long it still takes: ``3 min 05 s left``, or nothing."""
        return f"{duration(self.seconds_left)} left" if self.seconds_left is not None else ""

    def words(self) -> str:
        """Return all of it: ``step 50 of 400 · loss 4.2 · 3.2 steps/s · 3 min 05 s left``."""
        if self.step is None:
            return self.phase
        of_all = f" of {self.last_step}" if self.last_step is not None else ""
        return " · ".join(filter(None, [f"step {self.step}{of_all}", self.figures, self.rate(), self.left()]))


def how_far(metrics_file: Path, beats: Sequence[RankBeat]) -> HowFar:
    """Return how far a stage is, from the end of its `metrics.jsonl` and the signs of life of its ranks."""
    row = last_row(metrics_file)
    beat = beats[0] if beats else None
    return HowFar(
        step=row.get("step"),
        last_step=beat.last_step if beat is not None else None,
        figures=_figures(row),
        step_seconds=_step_seconds(metrics_file),
        phase=beat.phase if beat is not None else "",
    )


def speed_and_end(metrics_file: Path, last_step: int | None, now: float) -> str:
    """Return how fast the present attempt gets on, and when it will end: ``3.2 steps/s · ends about 14:05``.

    ``now`` is in seconds since the epoch. Empty until two steps are logged.
    """
    at = HowFar(last_row(metrics_file).get("step"), last_step, step_seconds=_step_seconds(metrics_file))
    if at.step_seconds is None:
        return ""
    shown = [at.rate()] if at.rate() else []
    if (left := at.seconds_left) is not None:
        clock = "%H:%M" if left < 12 * 3600 else "%Y-%m-%d %H:%M"
        shown.append(f"ends about {time.strftime(clock, time.localtime(now + left))}")
    return " · ".join(shown)


def _step_seconds(metrics_file: Path) -> float | None:
    rows = [row for row in last_rows(metrics_file) if "step" in row and "seconds" in row]
    attempt = rows[-1:]
    for row in reversed(rows[:-1]):  # seconds start anew with each attempt
        if row["seconds"] > attempt[0]["seconds"]:
            break
        attempt.insert(0, row)
    steps = attempt[-1]["step"] - attempt[0]["step"] if attempt else 0
    return float(attempt[-1]["seconds"] - attempt[0]["seconds"]) / steps if steps > 0 else None


def _figures(row: dict[str, Any]) -> str:
    names = ("loss", "eval_loss")
    return " · ".join(f"{name} {row[name]:.4g}" for name in names if isinstance(row.get(name), (int, float)))
