"""What is asked of the machine's system, on Linux and on macOS."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many cores this process may use; macOS binds none, so there it is all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_stopped(pid: int) -> bool:
    """Return whether a process of this machine was stopped by a signal."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def has_variable(pid: int, name: str, value: str) -> bool:
    """Return whether a process of this machine, if it is there and ours to look at, began with a variable."""
    import psutil

    try:
        return psutil.Process(pid).environ().get(name) == value
    except (psutil.Error, OSError):
        return False
