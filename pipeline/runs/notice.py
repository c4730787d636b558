"""Tells whoever wants to know that a run has ended, by a command of theirs."""

from __future__ import annotations

import os
import subprocess
import sys

from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.errors import EXIT_DONE, EXIT_GATE, EXIT_REQUEUE

PATIENCE_SECONDS = 60.0
"""How long the command may take."""
ENDS = {EXIT_DONE: "done", EXIT_GATE: "refused", EXIT_REQUEUE: "stopped"}
"""What exit codes mean; any other is ``failed``."""


def give_notice(command: str | None, run: RunDirectory, code: int, message: str) -> None:
    """Run ``launcher.notify`` with how a run ended in its environment; what becomes of it changes nothing of the run.

    ``POSTTRAIN_RUN`` is the run's name, ``POSTTRAIN_STATE`` done, failed, refused or stopped, ``POSTTRAIN_CODE`` the
    exit code and ``POSTTRAIN_MESSAGE`` a line for people.
    """
    if command is None:
        return
    said = {"RUN": run.name, "STATE": ENDS.get(code, "failed"), "CODE": str(code), "MESSAGE": message}
    environment = {**os.environ, **{f"POSTTRAIN_{name}": value for name, value in said.items()}}
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_SECONDS,
            start_new_session=True,  # a Ctrl-C is the run's
            check=False,
        )
        lines = done.stderr.splitlines()
        problem = (
            f"exit code {done.returncode}{': ' if lines else ''}{lines[-1] if lines else ''}" if done.returncode else ""
        )
    except subprocess.TimeoutExpired:
        problem = f"no end within {PATIENCE_SECONDS:.0f} s"
    except OSError as error:
        problem = str(error)
    if problem:
        print(f"warning: launcher.notify: {problem}", file=sys.stderr, flush=True)
