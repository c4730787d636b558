"""The leash between a stage and the launcher that started it: a pipe on standard input.

A byte on it asks the stage to stop, which is SIGTERM to itself; its end, which the kernel makes when the launcher is
gone for whatever reason, ends the stage at once. So a killed launcher never leaves a stage behind that still writes.
Unlike signals to a process group, the pipe also reaches ranks that `accelerate launch` started in their own sessions.
Workers that a stage spawned follow it in the same way.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading

VARIABLE = "POSTTRAIN_LEASH"
"""Environment variable by which the launcher says that standard input is a leash."""
STDIN = 0


def follow() -> None:
    """Obey the launcher's leash from now on; do nothing in a stage started by hand."""
    if os.environ.get(VARIABLE) != "stdin":
        return
    if select.select([STDIN], [], [], 0)[0]:
        _obey_next_order()  # it came while this process was importing
    threading.Thread(target=_obey, name="leash", daemon=True).start()


def end_with_parent() -> None:
    """End this process, a worker that `multiprocessing` spawned, as soon as the one that spawned it is gone.

    A worker would else wait for work for ever: it holds both ends of the queue that it reads from, so it sees no end.
    """
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_end_with_parent, name="leash", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _obey() -> None:
    while True:
        _obey_next_order()


def _obey_next_order() -> None:
    if os.read(STDIN, 1):
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os.killpg(0, signal.SIGKILL)
