"""What a person sees while stages run: live lines on a terminal, plain ones otherwise, and the table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from posttrain.stage.artifact import Manifest

HEARTBEAT_SECONDS = 30.0
TAIL_BYTES = 8192
TABLE_WIDTH = 140


def console_for_tables() -> Console:
    """Return a console; one that writes into a file or pipe, which has no width of its own, gets a wide one."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    return console


class Display:
    """Announces what happens to stages; a context manager that keeps the live lines below the announcements."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[latest]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._spoke: dict[str, float] = {}

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, stage: str, text: str) -> None:
        """Print one line about a stage."""
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock}  {escape(stage):<22} {escape(text)}", highlight=False, soft_wrap=True)

    def started(self, stage: str, text: str) -> None:
        """Announce a stage and show it as running."""
        self.say(stage, text)
        self._tasks[stage] = self._live.add_task(escape(stage), total=None, latest="")
        self._spoke[stage] = time.monotonic()

    def ended(self, stage: str, text: str) -> None:
        """Announce the end of a stage."""
        self._live.remove_task(self._tasks.pop(stage))
        self.say(stage, text)

    def update(self, stage: str, metrics_file: Path) -> None:
        """Show how far a running stage has come."""
        if self._console.is_terminal:
            self._live.update(self._tasks[stage], latest=escape(latest_metrics(metrics_file)))
        elif time.monotonic() - self._spoke[stage] > HEARTBEAT_SECONDS:
            self._spoke[stage] = time.monotonic()
            self.say(stage, f"running {latest_metrics(metrics_file)}".rstrip())


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
        return [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError):
        return []


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


def stage_table(states: Mapping[str, str], manifests: Mapping[str, Manifest], title: str) -> Table:
    """Return the table of a run: what became of each stage and what it made."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "status", "made", "key"):
        table.add_column(heading, no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("result", overflow="fold")
    for name, state in states.items():
        manifest = manifests.get(name)
        table.add_row(name, state, *([escape(cell) for cell in _cells(manifest)] if manifest else []))
    return table


def _cells(manifest: Manifest) -> Sequence[str]:
    per_second = manifest.tokens / manifest.wall_seconds if manifest.tokens and manifest.wall_seconds else 0
    return (
        manifest.kind,
        manifest.key[:8],
        duration(manifest.wall_seconds),
        f"{per_second:,.0f}" if per_second else "",
        manifest.headline,
    )


def duration(seconds: float) -> str:
    """Return a wall time as people say it: ``3.2 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
