"""What a process prints, such that printing never decides what becomes of its work.

A reader that went away (`| head -2`, a closed terminal) or a full disk makes a write fail; one that stands still
(Ctrl-S, a stalled connection) makes it wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

MOST_WAITING = 100_000
"""Pieces of output that wait for a reader which stands still; what comes beyond them is counted."""
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}
"""Failures that no later write can be spared."""


class Unfailing:
    """A stream whose writes never raise. ``failed`` says what went wrong first; the rest is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        self._gone = False
        self.failed: OSError | None = None
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            self._descriptor = stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write at once, past the stream's own buffer, which could fail once more when the process ends."""
        if not self._gone:
            try:
                self._put(text)
            except OSError as error:
                self.failed = self.failed or error
                self._gone = error.errno in _GONE
            except ValueError:  # a closed stream
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Do nothing: what was written has left."""

    def _put(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        left = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])


class _Queued:
    """A stream that another thread writes."""

    def __init__(self, stream: Unfailing, put: Callable[[Unfailing, str], None]) -> None:
        self._stream = stream
        self._put = put

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._put(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: the other thread leaves nothing lying about."""


@contextmanager
def unhindered(word: str = "") -> Iterator[None]:
    """Let standard output and error neither fail nor wait within the context; its end waits for their readers.

    ``word`` is said on standard error after the first failure of standard output.
    """
    before = sys.stdout, sys.stderr
    out, err = (Unfailing(stream) for stream in before)
    waiting: queue.SimpleQueue[tuple[Unfailing, str] | None] = queue.SimpleQueue()
    lost = 0

    def put(stream: Unfailing, text: str) -> None:
        nonlocal lost
        if waiting.qsize() < MOST_WAITING:
            waiting.put((stream, text))
        else:
            lost += 1

    def serve() -> None:
        told = not word
        while (piece := waiting.get()) is not None:
            stream, text = piece
            stream.write(text)
            if out.failed is not None and not told:
                told = True
                err.write(f"standard output: {out.failed.strerror}; {word}\n")
        if lost:
            err.write(f"{lost} pieces of output found no reader and were left out\n")

    thread = threading.Thread(target=serve, name="outlet", daemon=True)
    thread.start()
    sys.stdout, sys.stderr = cast(TextIO, _Queued(out, put)), cast(TextIO, _Queued(err, put))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        waiting.put(None)
        thread.join()


def outlive_readers() -> None:
    """Let standard output and error not fail in this process from now on."""
    sys.stdout, sys.stderr = cast(TextIO, Unfailing(sys.stdout)), cast(TextIO, Unfailing(sys.stderr))
