"""Work on batches of rows, here or in several processes, with the same result in the same order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar

from posttrain.stage import heartbeat
from posttrain.stage.leash import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

BATCH = 512
"""Rows of a batch."""


def batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield rows in batches, in order."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


class Workers:
    """Processes that steps share, started when there is more than one batch to work on."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def each_batch(self, work: Callable[[Sequence[T]], R], rows: Sequence[T]) -> list[R]:
        """Return what ``work``, a function of a module, makes of each batch."""
        made = []
        for result in self._map(len(rows))(work, batches(rows)):
            made.append(result)
            heartbeat.pulse()
        return made

    def _map(self, rows: int) -> Callable[[Callable[[Sequence[T]], R], Iterable[Sequence[T]]], Iterator[R]]:
        if self._count == 1 or rows <= BATCH:
            return map
        # Spawned, since forking a process whose libraries have started threads can deadlock.
        spawn = multiprocessing.get_context("spawn")
        self._pool = self._pool or ProcessPoolExecutor(self._count, spawn, initializer=end_with_parent)
        return self._pool.map

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
