"""Notices that a stage hangs, has every rank write down where it stands, and says which one is to blame.

A stage hangs when none of its ranks got on for the configured time. A single rank that stands still does not count as
long as another works: it may wait for that one, which hashes a checkpoint. Where one rank really is stuck, the others
wait for it in their next collective operation, and then none gets on.

The timeout must exceed the longest time without a sign of life: loading a model, compiling, gathering sharded weights,
one micro-batch; on a network file system also the minute until a change shows on another node.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from posttrain.stage.heartbeat import RankBeat, read_beats
from posttrain.stage.machine import is_stopped

LOOK_SECONDS = 1.0
"""Time between two looks at the files."""
START_SECONDS = 600.0
"""Least time until the first sign of life: importing from a busy network file system takes minutes."""
DUMP_SECONDS = 10.0
"""How long to wait for the ranks' stacks; a process in an uninterruptible system call never writes them."""
SETTLE_SECONDS = 1.0
"""Stacks that have not grown for so long are whole; they are written frame by frame, by a process that a busy
machine may hold up between two."""


class Watchdog:
    """Watches the ranks of one attempt through the folder that `posttrain.stage.heartbeat.VARIABLE` gave them.

    Times are those of the watcher's own clock; the clocks of the nodes do not matter.
    """

    def __init__(self, folder: Path, timeout_seconds: float, start_seconds: float = START_SECONDS) -> None:
        self.folder = folder
        self.timeout_seconds = timeout_seconds
        self.start_seconds = max(timeout_seconds, start_seconds)
        self._beats: list[RankBeat] = []
        self._looked = time.monotonic()
        self._still_seconds = 0.0

    def hung(self) -> str | None:
        """Return which ranks hang since when and where, or None while all is well; cheap, so ask often."""
        now = time.monotonic()
        interval = min(LOOK_SECONDS, self.timeout_seconds / 4)
        if now - self._looked < interval:
            return None
        # no more than two looks' time counts: a watcher that was itself suspended saw nothing stand still
        self._still_seconds += min(now - self._looked, 2 * interval)
        self._looked = now
        beats = read_beats(self.folder)
        if beats != self._beats:
            self._beats, self._still_seconds = beats, 0.0
        limit = self.timeout_seconds if beats else self.start_seconds
        return self.describe() if self._still_seconds >= limit else None

    def describe(self) -> str:
        """Name the ranks that hold up the others: those that are stopped, else those that are behind, else all."""
        if not self._beats:
            return f"no rank gave a sign of life within {self.start_seconds:g} s"
        waited = f"{self.timeout_seconds:g} s"
        stopped = [said for said in self._beats if _is_stopped(said)]
        least = min(said.beat for said in self._beats)
        guilty = stopped or [said for said in self._beats if said.beat == least]
        names = [f"rank {said.rank} (pid {said.pid} on {said.host}{', stopped' * bool(stopped)})" for said in guilty]
        who = f"all {len(guilty)} ranks" if len(guilty) == len(self._beats) > 1 and not stopped else ", ".join(names)
        step, last = guilty[0].step, guilty[0].last_step
        where = guilty[0].phase if step is None else f"{guilty[0].phase}, step {step} of {last}"
        return f"{who} stood still for {waited} ({where}); stacks in {self.folder}"

    def dump(self, send: Callable[[int], None]) -> list[Path]:
        """Have every rank write the stacks of its threads; return the files that came.

        ``send`` sends a signal to all ranks of the attempt. A stopped process handles the first when it gets the
        second, and would then go on: end it right after. Before its first sign of life a rank has no handler, and
        the signal would only kill it.
        """
        if not self._beats:
            return []
        files = [said.stack_file(self.folder) for said in self._beats]
        before = {path: _size(path) for path in files}
        send(signal.SIGUSR2)
        send(signal.SIGCONT)
        deadline = time.monotonic() + DUMP_SECONDS
        last: dict[Path, int] = {}
        while time.monotonic() < deadline:
            sizes = {path: _size(path) for path in files}
            if sizes == last and all(sizes[path] > before[path] for path in files):
                break
            last = sizes
            time.sleep(SETTLE_SECONDS)
        return [path for path in files if _size(path) > before[path]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_stopped(said: RankBeat) -> bool:
    """Return whether a process of this machine was stopped by a signal."""
    return said.host == socket.gethostname() and is_stopped(said.pid)
