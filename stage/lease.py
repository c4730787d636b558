"""One writer per artifact: an advisory lock on a file that dies with its holder, and says who that is.

The lock is `flock(2)`: the kernel drops it when the process ends, even by SIGKILL, so a stale lease cannot exist. On a
network file system it needs lock support (NFSv4; Lustre mounted with ``-o flock``).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Self

from posttrain.stage import heartbeat
from posttrain.stage.errors import LeaseHeldError

PROBE_SECONDS = 1.0
"""Least wait for a lease: `holder` takes the lock for an instant, so that one refusal proves nothing."""


def holder(path: Path) -> str | None:
    """Return who holds the lease at ``path``, or None when it is free."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return describe(file.read())
    except FileNotFoundError:
        return None
    return None


def describe(text: str) -> str:
    """Return one phrase for the JSON text that a holder left in its lease file."""
    try:
        who = json.loads(text)
    except ValueError:
        return "a process that has just taken it"
    return f"process {who['pid']} on {who['host']} (run {who['run']}, since {who['since']})"


class Lease:
    """A held lease; a context manager that waits up to ``wait_seconds`` for its turn.

    Raises LeaseHeldError, naming the holder, when the wait is over.
    """

    def __init__(self, path: Path, run: str, wait_seconds: float = 0.0) -> None:
        self.path = path
        self.run = run
        self.wait_seconds = wait_seconds
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + max(self.wait_seconds, PROBE_SECONDS)
        file = self.path.open("a+", encoding="utf-8")
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    who = describe(file.read())
                    file.close()
                    raise LeaseHeldError(
                        f"{self.path.parent.name} is being written by {who}; wait for it and run the same command again"
                    ) from None
                heartbeat.pulse()
                time.sleep(0.2)
        file.truncate(0)
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "run": self.run, "since": since}, file)
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
