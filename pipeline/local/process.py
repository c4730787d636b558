"""One running stage: its process, its leash, its log and its watchdog."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from posttrain.pipeline.local.launch import Command
from posttrain.pipeline.watch.watchdog import Watchdog
from posttrain.stage import heartbeat
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from posttrain.stage.machine import has_variable
from posttrain.stage.outcome import Outcome, read_outcome


class StageProcess:
    """A started stage. It writes to ``log``, and its standard input is the leash of `posttrain.stage.leash`.

    Its ranks give their signs of life in a folder beside the log, which also holds their stacks when they hung; those
    of several machines share ``signs``.
    """

    def __init__(
        self, command: Command, outcome: Path, log: Path, timeout_seconds: float, signs: Path | None = None
    ) -> None:
        self.outcome = outcome
        self.log = log
        self.asked_to_stop = False
        self.started = time.monotonic()
        self._signs = signs or log.with_suffix(".ranks")
        self._watchdog = Watchdog(self._signs, timeout_seconds)
        self._cut_off: str | None = None
        outcome.unlink(missing_ok=True)
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                command.arguments,
                env=command.full_environment() | {heartbeat.VARIABLE: str(self._signs)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone, which then asks politely
            )

    @property
    def pid(self) -> int:
        """Process id of what was started: the stage, or the `accelerate launch` above its ranks."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

    def finished(self) -> bool:
        """Return whether the process has ended; whatever it left behind ends with it. One that hangs is ended."""
        if self._process.poll() is None:
            hung = self._watchdog.hung()
            if hung is None:
                return False
            self._cut_off = f"hung: {hung}"
            self._watchdog.dump(self._signal_ranks)
        self.kill()
        return True

    @property
    def code(self) -> int | None:
        """Exit code of a process that has ended, negative for a signal's number."""
        return self._process.returncode

    def cut_off(self, why: str) -> None:
        """End the stage for want of what it cannot do without; its outcome says so, and that it can go on."""
        self._cut_off = why
        self.kill()

    def stop(self) -> None:
        """Ask the stage to save its state and exit."""
        self.asked_to_stop = True
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End the stage and all its ranks at once: let go of the leash, and kill what has not taken it or cannot."""
        assert self._process.stdin is not None
        self._signal_ranks(signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _signal_ranks(self, number: int) -> None:
        """Send a signal to the ranks, and SIGKILL to what they started too."""
        for said in heartbeat.read_beats(self._signs):
            with contextlib.suppress(OSError):
                if has_variable(said.pid, heartbeat.VARIABLE, str(self._signs)):  # else a number used again
                    os.killpg(os.getpgid(said.pid), number) if number == signal.SIGKILL else os.kill(said.pid, number)

    def result(self) -> Outcome:
        """Return how a finished stage ended; where it left no word of it, one is left for `posttrain status`."""
        outcome = read_outcome(self.outcome)
        done = outcome is not None and outcome.code == EXIT_DONE
        if self._cut_off is not None and not done:  # continued for the dump, a stopped rank may have come to its end
            outcome = Outcome(EXIT_REQUEUE, f"{self._cut_off}; the same command goes on from the last checkpoint")
            outcome.write(self.outcome)
        elif outcome is None or (done and self._cut_off is None and self._process.returncode != 0):
            outcome = self._without_outcome()
            outcome.write(self.outcome)
        if outcome.code == EXIT_DONE:
            shutil.rmtree(self._signs, ignore_errors=True)
        return outcome

    def _without_outcome(self) -> Outcome:
        if self.asked_to_stop:
            return Outcome(EXIT_REQUEUE, "ended on request before it could save; earlier checkpoints stand")
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Outcome(EXIT_FAILED, f"the process {how} and left no outcome{_last_words(self.log)}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"; its last line: {lines[-1][:300]}" if lines else ""
