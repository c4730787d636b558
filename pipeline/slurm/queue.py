"""Slurm's own commands, as functions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from posttrain.pipeline.graph.environment import without_launchers
from posttrain.pipeline.runs.rundir import RunDirectory, read_jobs
from posttrain.pipeline.runs.state import Job, Queue
from posttrain.stage.errors import PosttrainError, UsageError

_SECONDS = 60.0
"""How long a command may wait for a busy controller."""
_FORMAT = "%i|%T|%r|%N|%S|%L"
_FIELD = re.compile(r"(?:^| )([A-Za-z:/]+)=(.*?)(?= [A-Za-z:/]+=|$)")


def run_command(*arguments: str) -> str:
    """Return what one of Slurm's commands prints.

    Raises UsageError when this machine has no Slurm, PosttrainError with Slurm's own words when the command fails.
    """
    if shutil.which(arguments[0]) is None:
        raise UsageError(f"launcher=slurm: no {arguments[0]} on this machine; start from a login node of the cluster")
    # neither the job that we may be in nor a shell's defaults reach the jobs that we submit
    environment = without_launchers(os.environ)
    try:
        done = subprocess.run(
            arguments,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            start_new_session=True,  # a Ctrl-C is ours to act on: `sbatch` would end without a word of its job
        )
    except subprocess.TimeoutExpired:
        raise PosttrainError(f"{arguments[0]}: no answer from Slurm within {_SECONDS:.0f} s") from None
    if done.returncode:
        raise PosttrainError(f"{arguments[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def submit(script: Path, dependencies: Sequence[str]) -> str:
    """Submit a batch script that waits for ``dependencies``, such as ``afterok:12:13``; returns the job's id."""
    return run_command(*submit_command(script, dependencies)).strip().partition(";")[0]


def submit_command(script: Path, dependencies: Sequence[str]) -> list[str]:
    """Return the command that submits a batch script; a job whose dependency can never come true is cancelled."""
    after = [f"--dependency={','.join(dependencies)}", "--kill-on-invalid-dep=yes"] if dependencies else []
    return ["sbatch", "--parsable", *after, str(script)]


def live_jobs(ids: Iterable[str]) -> dict[str, Job]:
    """Return those of some jobs and array elements that Slurm still has to run or is running, by id."""
    wanted = {job.partition("_")[0] for job in ids}
    if not wanted:
        return {}
    asked = f"--jobs={','.join(sorted(wanted))}"  # of whichever user: a colleague may look too
    try:
        listed = run_command("squeue", asked, "--array", "--noheader", "--states=all", f"--format={_FORMAT}")
    except PosttrainError as error:
        if "Invalid job id" in str(error):  # what squeue says of a single job that Slurm has forgotten
            return {}
        raise
    jobs = [Job(*line.split("|", 5)) for line in listed.splitlines()]
    return {job.id: job for job in jobs if job.live}


def own_id() -> str:
    """Return the id of the job, or of the element of a job array, that this process is in.

    In an array ``SLURM_JOB_ID`` would not do: one element has the id of the whole array.
    """
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def own_job() -> dict[str, str]:
    """Return what `scontrol` shows of the job that this process is in, by field."""
    shown = run_command("scontrol", "--oneliner", "show", "job", own_id())
    return dict(_FIELD.findall(shown.splitlines()[0]))


def was_requeued(own: dict[str, str]) -> bool:
    """Return whether Slurm already counts one start more for `own_job` than this process knows of."""
    return int(own.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def requeue_own_job() -> None:
    """Put the job that this process is in back into the queue; Slurm then kills the process."""
    run_command("scontrol", "requeue", own_id())


def signal_step(step: int, name: str) -> None:
    """Send a signal to every task of a step of this process's job, on all nodes."""
    run_command("scancel", f"--signal={name}", f"{os.environ['SLURM_JOB_ID']}.{step}")


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs and array elements; those that have ended already are left in peace."""
    if ids:
        run_command("scancel", "--quiet", *ids)


def first_node_address() -> str:
    """Return the network address of the first node of this process's job."""
    first = run_command("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    shown = dict(_FIELD.findall(run_command("scontrol", "--oneliner", "show", "node", first).splitlines()[0]))
    return str(shown.get("NodeAddr", first))


def read_queue(run: RunDirectory) -> Queue:
    """Return what Slurm knows of a run's jobs; nothing for a run that was never submitted."""
    jobs = read_jobs(run)
    try:
        live = live_jobs(jobs.values())
    except PosttrainError as error:
        return Queue(jobs, {}, str(error))
    if jobs and not live and (owner := run.jobs.stat().st_uid) != os.getuid():
        return Queue(jobs, {}, f"it lists no job of uid {owner}, who submitted them: all have ended, or it hides them")
    return Queue(jobs, live)
