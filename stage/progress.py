"""Progress of long loops: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from posttrain.stage import heartbeat

log = logging.getLogger(__name__)

T = TypeVar("T")
SILENT_SECONDS = 2.0
"""A loop shorter than this shows nothing."""
LINE_SECONDS = 10.0
"""Time between two plain lines."""


def track(batches: Iterable[list[T]], total: int, what: str) -> Iterator[list[T]]:
    """Yield batches on, show how many of ``total`` items they have held so far, and tell the watchdog of each."""
    heartbeat.beat(what)
    for batch in _bar(batches, total, what) if sys.stderr.isatty() else _lines(batches, total, what):
        heartbeat.pulse()
        yield batch


def _bar(batches: Iterable[list[T]], total: int, what: str) -> Iterator[list[T]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, visible=False)
        for batch in batches:
            yield batch
            progress.update(task, advance=len(batch), visible=time.monotonic() - started > SILENT_SECONDS)


def _lines(batches: Iterable[list[T]], total: int, what: str) -> Iterator[list[T]]:
    done = 0
    due = time.monotonic() + SILENT_SECONDS
    for batch in batches:
        yield batch
        done += len(batch)
        if time.monotonic() > due:
            log.info("%s: %d of %d (%.0f %%)", what, done, total, 100 * done / total)
            due = time.monotonic() + LINE_SECONDS
