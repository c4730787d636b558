"""Run one daemon and end it, with everything that it ever started, when standard input closes.

    python keeper.py PROGRAM ARGUMENT...

The keeper is a child subreaper: whatever the daemon's descendants do to detach themselves (Slurm's step daemons start
sessions of their own and outlive slurmd), they stay below the keeper, and it finds them. Its standard input is a pipe
that only the test process holds, so that even a killed test process ends them all.

It also does what control groups do on a cluster that has them: a process that lost its parent, and that Slurm therefore
no longer finds, does not outlive its step by much. Without that it would hold the step's output open, and Slurm would
drain the node.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
DAEMONS = ("munged", "slurm")
ORPHAN_SECONDS = 5.0  # KillWait in cluster.py


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    parent: int
    name: str


def processes() -> Iterator[Process]:
    """Yield the living processes of the machine."""
    for directory in Path("/proc").glob("[0-9]*"):
        # A process may end between the listing and the reading.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # pid (name) state parent …: a name may hold spaces and parentheses.
            head, _, tail = (directory / "stat").read_text().rpartition(")")
            state, parent = tail.split()[:2]
            if state not in "ZX":
                yield Process(int(directory.name), int(parent), head.partition("(")[2])


def descendants(ancestor: int) -> list[int]:
    """Return the ids of the living processes below a process, parents before children."""
    children: dict[int, list[int]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process.pid)
    found = [ancestor]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def kill(pids: list[int]) -> None:
    """SIGKILL processes, of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_old_orphans(keeper: int, seen: dict[int, float]) -> None:
    """SIGKILL what the keeper adopted some seconds ago and is not Slurm's own; `seen` remembers since when."""
    orphans = {
        process.pid for process in processes() if process.parent == keeper and not process.name.startswith(DAEMONS)
    }
    for pid in seen.keys() - orphans:
        del seen[pid]
    now = time.monotonic()
    kill([pid for pid in orphans if now - seen.setdefault(pid, now) > ORPHAN_SECONDS])


def reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main(command: list[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGCHLD, reap)
    os.posix_spawnp(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    )
    keeper = os.getpid()
    seen: dict[int, float] = {}
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        kill_old_orphans(keeper, seen)
    # Until none is left: a process may fork while it is being killed.
    while left := descendants(keeper):
        kill(left)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
