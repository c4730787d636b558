"""`posttrain cancel`: end a run, wherever it was started."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_jobs
from posttrain.pipeline.slurm import queue
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.lease import describe, find_holder


def cancel_run(root: Path, name: str) -> int:
    """Cancel the jobs of a run, or ask its local launcher to save and stop; artifacts and checkpoints stay."""
    run = find_run(root, name)
    launcher = find_holder(run.lease)
    cancelled = False
    try:
        cancelled = _cancel_jobs(run)
    finally:  # a machine without Slurm may still have the launcher
        if launcher is not None:
            _stop_launcher(run, launcher)
    if not cancelled and launcher is None:
        print(f"run {run.name}: nothing runs")
    return EXIT_DONE


def _cancel_jobs(run: RunDirectory) -> bool:
    """Cancel what Slurm still has of a run, and return whether that was anything."""
    jobs = read_jobs(run)
    live = queue.live_jobs(jobs.values())
    mine = {stage: job for stage, job in jobs.items() if job in live}
    if mine:
        queue.cancel(list(mine.values()))
        print(f"run {run.name}: cancelled {', '.join(f'{stage} ({job})' for stage, job in mine.items())}")
    return bool(mine)


def _stop_launcher(run: RunDirectory, launcher: dict[str, Any]) -> None:
    who = describe(launcher)
    if not launcher:
        raise UsageError(f"run {run.name}: launched by {who}; say it again in a moment")
    if launcher["host"] != socket.gethostname():
        raise UsageError(f"run {run.name}: launched by {who}, another machine; say it there")
    try:
        os.kill(launcher["pid"], signal.SIGTERM)
    except PermissionError:
        raise UsageError(f"run {run.name}: launched by {who}, of another user; ask its owner") from None
    print(f"run {run.name}: {who} was asked to save and stop")
