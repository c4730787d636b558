"""`posttrain logs`: the log of a stage's latest attempt, and what is added to it."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_stages
from posttrain.pipeline.runs.state import run_status
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean

POLL_SECONDS = 0.2
SHOWN_FIRST = ("failed", "damaged", "running", "killed", "stopped")


def print_log(root: Path, run_name: str, stage: str | None, follow: bool) -> int:
    """Print the log of a stage, or of the one that failed, runs, or ran last.

    With ``follow``, what is added to it too, until the stage ends. Raises UsageError for a stage that has no log.
    """
    run = find_run(root, run_name)
    name = stage or _most_telling(run)
    if name not in (stages := read_stages(run)):
        raise UsageError(f"logs {name}: no stage of run {run.name}{did_you_mean(name, stages)}")
    attempts = run.attempts(name)
    if not attempts:
        raise UsageError(f"logs {name}: run {run.name} never started it; it was made before, or waits")
    print(f"{name}: {attempts[-1]}", file=sys.stderr)
    with attempts[-1].open(encoding="utf-8", errors="replace") as file:
        shutil.copyfileobj(file, sys.stdout)
        while follow and _state(run, name) in ("running", "starting"):
            sys.stdout.flush()
            time.sleep(POLL_SECONDS)
            shutil.copyfileobj(file, sys.stdout)
        shutil.copyfileobj(file, sys.stdout)
    return EXIT_DONE


def _state(run: RunDirectory, stage: str) -> str:
    return next(status.state for status in run_status(run, read_queue(run)) if status.stage == stage)


def _most_telling(run: RunDirectory) -> str:
    """Return the stage that a person most likely asks for."""
    states = {status.stage: status.state for status in run_status(run, read_queue(run)) if run.attempts(status.stage)}
    if not states:
        raise UsageError(f"logs: run {run.name} started no stage yet")
    ranked = sorted(states, key=lambda name: -run.attempts(name)[-1].stat().st_mtime_ns)
    found = (name for state in SHOWN_FIRST for name in ranked if states[name] == state)
    return next(found, ranked[0])
