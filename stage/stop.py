"""Stop requests: what SIGTERM, SIGUSR1, Ctrl-C and a hang-up do to a stage.

Whoever has state to save takes the signals over for as long as that is so (`posttrain.train.engine.signals`). At any
other time, and in stages that save nothing on their way, the process ends at once: what is committed is committed, and
the rest is what a killed process leaves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import FrameType

from posttrain.stage.errors import StoppedError
from posttrain.stage.outcome import Outcome

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)
"""Those of a terminal in which a stage was started by hand; `nohup` and a script's background have them ignored."""


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop this stage."""
    heeded = [number for number in OF_A_TERMINAL if signal.getsignal(number) is not signal.SIG_IGN]
    return [*STOP_SIGNALS, *heeded]


def end_at_stop_signals(outcome: Path, work: Path) -> None:
    """From now on, end this process at a stop signal, with the outcome of a StoppedError.

    It does not raise: an exception could surface in any line, also in one that swallows it.
    """
    ours = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == ours:  # a forked child inherits the handler
            how = "it starts again from the beginning"
            if any(work.glob("checkpoints/checkpoint-*")):
                how = "the same command goes on from the last checkpoint"
            elif any(path.stat().st_size for path in work.glob("*.[0-9]*.jsonl")):
                how = "the same command goes on behind the rows that are done"
            message = f"stopped on request; {how}"
            Outcome(StoppedError.exit_code, message, StoppedError.__name__).write(outcome)
            os.write(2, f"error: {message}\n".encode())
            for child in multiprocessing.active_children():
                child.kill()
        os._exit(StoppedError.exit_code)

    for number in stop_signals():
        signal.signal(number, end)
