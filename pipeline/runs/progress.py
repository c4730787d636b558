"""How far a stage is, read from the end of its `metrics.jsonl`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

TAIL_BYTES = 8192


def latest_metrics(metrics_file: Path) -> str:
    """Return the last line of a `metrics.jsonl` in words: ``step 120 · loss 1.234``; empty when there is none."""
    row = last_row(metrics_file)
    shown = [f"step {row['step']}"] if "step" in row else []
    shown += [f"{name} {row[name]:.4g}" for name in ("loss", "eval_loss") if isinstance(row.get(name), (int, float))]
    return " · ".join(shown)


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


def speed_and_end(metrics_file: Path, last_step: int | None, now: float) -> str:
    """Return how fast the present attempt gets on, and when it will end: ``3.2 steps/s · ends about 14:05``.

    ``now`` is in seconds since the epoch. Empty until two steps are logged.
    """
    rows = [row for row in last_rows(metrics_file) if "step" in row and "seconds" in row]
    attempt = rows[-1:]
    for row in reversed(rows[:-1]):  # seconds start anew with each attempt
        if row["seconds"] > attempt[0]["seconds"]:
            break
        attempt.insert(0, row)
    steps = attempt[-1]["step"] - attempt[0]["step"] if attempt else 0
    if steps <= 0:
        return ""
    seconds = (attempt[-1]["seconds"] - attempt[0]["seconds"]) / steps
    shown = [f"{1 / seconds:.3g} steps/s" if seconds < 1 else f"{seconds:.3g} s/step"] if seconds > 0 else []
    if last_step is not None:
        left = (last_step - attempt[-1]["step"]) * seconds
        clock = "%H:%M" if left < 12 * 3600 else "%Y-%m-%d %H:%M"
        shown.append(f"ends about {time.strftime(clock, time.localtime(now + left))}")
    return " · ".join(shown)
