"""Work on batches of rows, here or in several processes, with the same result in the same order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar, cast

from posttrain.data.rows.shelf import BATCH, Shelf
from posttrain.stage import heartbeat
from posttrain.stage.leash import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Batches that wait for each process, at most: all of a large dataset would not fit."""


def batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield rows in batches, in order."""
    if isinstance(rows, Shelf):
        yield from cast(Iterator[Sequence[T]], rows.batches())
        return
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


class Workers:
    """Processes that steps share, started when there is more than one batch to work on."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def each_batch(self, work: Callable[[Sequence[T]], R], rows: Sequence[T]) -> Iterator[R]:
        """Yield what ``work``, a function of a module, makes of each batch, in order."""
        alone = self._count == 1 or len(rows) <= BATCH
        for result in map(work, batches(rows)) if alone else self._shared(work, rows):
            yield result
            heartbeat.pulse()

    def _shared(self, work: Callable[[Sequence[T]], R], rows: Sequence[T]) -> Iterator[R]:
        # Spawned, since forking a process whose libraries have started threads can deadlock.
        spawn = multiprocessing.get_context("spawn")
        self._pool = self._pool or ProcessPoolExecutor(self._count, spawn, initializer=end_with_parent)
        begun: deque[Future[R]] = deque()
        for batch in batches(rows):
            begun.append(self._pool.submit(work, batch))
            if len(begun) == AHEAD * self._count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
