"""A rank's signs of life: a small file that changes whenever it gets on, read by `posttrain.pipeline.watch.watchdog`.

    <folder>/rank_0.json         {"rank": 0, "pid": …, "host": …, "beat": …, "pulse": …, "step": …, "phase": …}
    <folder>/rank_0.stack.txt    stacks of all its threads, each time that it gets SIGUSR2

The launcher names the folder, a new one for each attempt, so that no file of an earlier one can be taken for a sign of
life. The signal is handled in C: the stacks also come from a rank that blocks in a library or never lets go of the
interpreter lock. They come on stderr where nobody watches.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "POSTTRAIN_HEARTBEAT"
"""Environment variable by which the launcher names the folder."""
PULSE_SECONDS = 1.0
"""Least time between two writes by `pulse`."""
_RECORD_BYTES = 512


@dataclasses.dataclass(frozen=True)
class RankBeat:
    """What a rank last said."""

    rank: int
    pid: int
    host: str
    beat: int = 0
    """How often the rank got on where all ranks do: a rank with a lower number than the others is behind them."""
    pulse: int = 0
    """The same for work that a rank may do alone, such as hashing a checkpoint."""
    step: int | None = None
    """Optimizer steps done."""
    last_step: int | None = None
    phase: str = "starting"

    def stack_file(self, folder: Path) -> Path:
        """Return the file that the rank writes its stacks into."""
        return folder / f"rank_{self.rank}.stack.txt"


class _Heartbeat:
    """The open file of this process. Rewriting it in place costs microseconds and, unlike a rename, no directory."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.said = RankBeat(rank, os.getpid(), socket.gethostname())
        self.written = 0.0
        self._stacks = os.open(self.said.stack_file(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        faulthandler.register(signal.SIGUSR2, file=self._stacks)
        self._file = os.open(folder / f"rank_{rank}.json", os.O_WRONLY | os.O_CREAT)
        self.say(self.said)

    def say(self, beat: RankBeat) -> None:
        self.said, self.written = beat, time.monotonic()
        os.pwrite(self._file, json.dumps(dataclasses.asdict(beat)).encode().ljust(_RECORD_BYTES - 1) + b"\n", 0)


_current: _Heartbeat | None = None


def start(rank: int) -> None:
    """Give the first sign of life, and dump the stacks of all threads at SIGUSR2 from now on."""
    global _current
    folder = os.environ.get(VARIABLE)
    _current = _Heartbeat(Path(folder), rank) if folder else None
    if _current is None:
        faulthandler.register(signal.SIGUSR2)


def beat(phase: str | None = None, step: int | None = None, last_step: int | None = None) -> None:
    """Say that this rank got on; what is not given stays as it was. Call it where every rank does."""
    if _current is None:
        return
    said = _current.said
    _current.say(
        dataclasses.replace(
            said,
            beat=said.beat + 1,
            phase=phase or said.phase,
            step=said.step if step is None else step,
            last_step=said.last_step if last_step is None else last_step,
        )
    )


def pulse() -> None:
    """Say, at most once a second, that this rank is at work; cheap enough for any loop, and for one rank alone."""
    if _current is not None and time.monotonic() - _current.written >= PULSE_SECONDS:
        _current.say(dataclasses.replace(_current.said, pulse=_current.said.pulse + 1))


@contextmanager
def waiting(phase: str) -> Iterator[None]:
    """Give signs of life from a thread while this one waits for something outside, such as a download.

    A process that is stopped, or whose interpreter is locked, still gives none.
    """
    beat(phase)
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(PULSE_SECONDS):
            pulse()

    thread = threading.Thread(target=go_on, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def read_beats(folder: Path) -> list[RankBeat]:
    """Return what each rank last said, by rank; one whose file is being written at this moment may be left out."""
    found = []
    for path in folder.glob("rank_*.json"):
        try:
            found.append(RankBeat(**json.loads(path.read_bytes())))
        except (ValueError, TypeError):
            continue
    return sorted(found, key=lambda said: said.rank)
