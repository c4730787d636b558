"""Stop signals of a launcher: what they ask for, and when.

Where stages run that have something to save, signals are noted, for the scheduler to pass on; anywhere else the first
ends the command at once. Signals that our parent told us to ignore (`nohup`, a job in a script's background) stay
ignored.
"""

from __future__ import annotations

import enum
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
INSISTING = (signal.SIGINT, signal.SIGTERM)
"""Signals that, come again, ask for more. A hang-up comes twice by itself: from the kernel, and from the shell."""
AGAIN_SECONDS = 1.0
"""What comes sooner after the first signal is that signal, handed on by a wrapper, or a key that bounced."""


class Request(NamedTuple):
    """A signal that came."""

    number: signal.Signals
    time: float


class Wanted(enum.IntEnum):
    """What the signals so far ask for."""

    NOTHING = 0
    SAVE = 1
    KILL = 2


def wanted(requests: list[Request]) -> Wanted:
    """Return what signals ask for: the first to save and stop, a later one of those that insist to end at once."""
    if not requests:
        return Wanted.NOTHING
    again = any(r.number in INSISTING and r.time - requests[0].time >= AGAIN_SECONDS for r in requests[1:])
    return Wanted.KILL if again else Wanted.SAVE


class StopRequests:
    """The stop signals that came to this process."""

    def __init__(self) -> None:
        self.came: list[Request] = []
        self._only_noted = False

    @property
    def wanted(self) -> Wanted:
        """What they ask for."""
        return wanted(self.came)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed signals within the context: outside `noted`, each raises KeyboardInterrupt."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in heeded:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in heeded:
                signal.signal(number, before[number])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note signals within the context, whose code asks what is wanted."""
        self._only_noted = True
        try:
            yield
        finally:
            self._only_noted = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came.append(Request(signal.Signals(number), time.monotonic()))
        if not self._only_noted:
            raise KeyboardInterrupt(signal.Signals(number).name)
