"""`posttrain cancel`: end a run, wherever it was started."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_jobs
from posttrain.pipeline.slurm import queue
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.lease import holder


def cancel_run(root: Path, name: str) -> int:
    """Cancel the jobs of a run, or ask its local launcher to save and stop; artifacts and checkpoints stay."""
    run = find_run(root, name)
    if jobs := read_jobs(run):
        live = queue.live_jobs(jobs.values())
        mine = {stage: job for stage, job in jobs.items() if job in live}
        queue.cancel(list(mine.values()))
        print(f"run {run.name}: cancelled {', '.join(f'{stage} ({job})' for stage, job in mine.items()) or 'nothing'}")
    elif (who := holder(run.lease)) is not None:
        _stop_launcher(run, who)
    else:
        print(f"run {run.name}: nothing runs")
    return EXIT_DONE


def _stop_launcher(run: RunDirectory, who: str) -> None:
    launcher = json.loads(run.lease.read_text(encoding="utf-8"))
    if launcher["host"] != socket.gethostname():
        raise UsageError(f"run {run.name}: launched by {who}, another machine; say it there")
    os.kill(launcher["pid"], signal.SIGTERM)
    print(f"run {run.name}: {who} was asked to save and stop")
