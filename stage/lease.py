"""One writer per artifact: an advisory lock on a file that dies with its holder, and says who that is.

The lock is `flock(2)`: the kernel drops it when the process ends, even by SIGKILL, so a stale lease cannot exist. On a
network file system it needs lock support (NFSv4; Lustre mounted with ``-o flock``). Whoever only looks shares the lock
for an instant, so that those who look never refuse each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any, Self

from posttrain.stage import heartbeat
from posttrain.stage.artifact import clear_work, leftovers
from posttrain.stage.errors import LeaseHeldError, UsageError

PROBE_SECONDS = 1.0
"""Least wait for a lease: whoever looks has it for an instant, so that one refusal proves nothing."""
LOOKS = 5
LOOK_SECONDS = 0.02
"""How often, and how long after each other, a holder is asked who it is: it says so just after it took the lock."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
SOMEONE = "a process that has just taken it"


def holder(path: Path) -> str | None:
    """Return who holds the lease at ``path``, or None when it is free, or its file system knows no locks."""
    who = find_holder(path)
    return None if who is None else describe(who)


def find_holder(path: Path) -> dict[str, Any] | None:
    """Return what the holder of a lease said of itself, an empty dictionary if nothing yet, or None when it is free."""
    try:
        with path.open(encoding="utf-8") as file:
            for _ in range(LOOKS):
                if _locked(file, fcntl.LOCK_SH):
                    return None
                if who := last_holder(path):
                    return who
                time.sleep(LOOK_SECONDS)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return {}


def last_holder(path: Path, dead_too: bool = False) -> dict[str, Any]:
    """Return what stands in a lease file of whoever took it last; nothing when that is known to be no more alive."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        alive = who["host"] != socket.gethostname() or _runs(int(who["pid"]))
        return who if {"run", "since"} <= who.keys() and (alive or dead_too) else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def describe(who: dict[str, Any]) -> str:
    """Return one phrase for what a holder said of itself."""
    return f"process {who['pid']} on {who['host']} (run {who['run']}, since {who['since']})" if who else SOMEONE


class Lease:
    """A held lease; a context manager that waits up to ``wait_seconds`` for its turn, and says for whom.

    None waits as long as it takes. Raises LeaseHeldError, naming the holder, when the wait is over, and UsageError on a
    file system without locks.
    """

    def __init__(self, path: Path, run: str, wait_seconds: float | None = 0.0) -> None:
        self.path = path
        self.run = run
        self.wait_seconds = wait_seconds
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        try:
            self._wait_for(file)
            file.truncate(0)
            since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "run": self.run, "since": since}, file)
            file.flush()
        except BaseException as error:
            file.close()
            if isinstance(error, OSError) and error.errno in NO_LOCKS:
                raise UsageError(
                    f"{self.path}: its file system has no locks ({error.strerror}), so that two runs could write the "
                    "same artifact; mount it with locks (Lustre: -o flock; NFS: version 4), or give another root"
                ) from None
            raise
        self._file = file
        return self

    def _wait_for(self, file: IO[str]) -> None:
        started, said = time.monotonic(), False
        while not _locked(file, fcntl.LOCK_EX):
            waited = time.monotonic() - started
            if waited >= PROBE_SECONDS:
                who = describe(last_holder(self.path))
                if self.wait_seconds is not None and waited >= self.wait_seconds:
                    raise LeaseHeldError(
                        f"{self.path.parent.name} is being written by {who}; wait for it and run the same command again"
                    )
                if not said:
                    with contextlib.suppress(OSError):
                        print(
                            f"{self.path.parent.name}: waiting for {who}; Ctrl-C gives up", file=sys.stderr, flush=True
                        )
                    said = True
            heartbeat.pulse()
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def clear_unheld_work(work: Path, run: str) -> None:
    """Drop what a stage left that was killed after it committed; nothing while someone is still at it."""
    if leftovers(work):
        with contextlib.suppress(LeaseHeldError, OSError), Lease(work / "lease", run):
            clear_work(work)


def _locked(file: IO[str], kind: int) -> bool:
    """Try to lock an open file, and return whether that worked."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid > 0
