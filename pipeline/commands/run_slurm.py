"""`posttrain run launcher=slurm`: submit, say what was submitted, and wait where that is wanted."""

from __future__ import annotations

import shlex
import sys
import time

from rich.table import Table

from posttrain.pipeline.commands.points import print_sweep
from posttrain.pipeline.runs.launched import Launch, note_launch
from posttrain.pipeline.runs.rundir import read_jobs
from posttrain.pipeline.runs.state import run_status
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.slurm import queue
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.pipeline.slurm.submit import Planned, Submission
from posttrain.pipeline.watch.progress import console_for_tables, version_warnings
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, PosttrainError

LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 2.0, 60.0
"""Between two looks at the queue, which all users of a cluster share: a twentieth of the time waited, within these."""


def submit_pipelines(points: dict[str, Point], stops: StopRequests, launch: Launch | None = None) -> int:
    """Submit the jobs of all points, print a line per stage, and return the exit code."""
    submission = Submission(list(points.values()))
    submission.submit(stops)
    for label, point in points.items():
        if launch is not None:
            note_launch(point.run, launch)
        print(f"run {point.run.name}{f' ({label})' if label else ''} → {point.run.path}")
    for line in version_warnings({s.variant.stage.name: s.made.manifest for s in submission.stages() if s.made}):
        print(line, file=sys.stderr)
    for item in submission.stages():
        if item.kept:
            print(
                f"warning: {item.variant.stage.name}: job {item.job} stays as it was submitted ({item.kept}); "
                f"`posttrain cancel {item.variant.home.name}` first to change it",
                file=sys.stderr,
            )
    console_for_tables().print(_table(submission.stages(), several=len(points) > 1))
    first = next(iter(points.values())).run.name
    if not any(point.config.launcher.slurm.wait for point in points.values()):
        print(f"posttrain status {first} shows how far it is, posttrain cancel {first} ends it")
        return EXIT_DONE
    try:
        _wait([job for point in points.values() for job in read_jobs(point.run).values()])
        code = max(_print_ends(point) for point in points.values())
        if len(points) > 1:
            print_sweep({label: point.run for label, point in points.items()})
        return code
    except KeyboardInterrupt as stop:
        print(
            f"stopped waiting ({stop}); the jobs go on: `posttrain status {first}` shows how far they are, "
            f"`posttrain cancel {first}` ends them",
            file=sys.stderr,
        )
        return EXIT_REQUEUE


def print_submission(points: dict[str, Point]) -> int:
    """Print every batch script and the line that would submit it; write nothing and submit nothing."""
    submission = Submission(list(points.values()))
    plans = submission.plan()
    for planned in submission.stages():
        if planned.made is not None:
            print(f"# {planned.variant.stage.name}: cached  {planned.made.directory.name}")
    for group, script, path in plans:
        print(f"\n# {shlex.join(queue.submit_command(path, group.dependencies))}\n{script}", end="")
    return EXIT_DONE


def _table(planned: list[Planned], several: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "job", "waits for", *(["runs"] if several else [])):
        table.add_column(heading, overflow="fold")
    has_job = {id(item.variant): bool(item.job) for item in planned}
    for item in planned:
        state = "cached" if item.made is not None else item.job if item.is_new else f"{item.job} (in the queue)"
        waits = [parent.stage.name for parent in item.variant.parents if has_job[id(parent)] and item.job]
        runs = ", ".join(point.run.name for point in item.variant.points)
        table.add_row(item.variant.stage.name, state, ", ".join(waits), *([runs] if several else []))
    return table


def _wait(jobs: list[str]) -> None:
    """Return once none of some jobs is left in the queue; a controller that is away for a while is waited for."""
    started = time.monotonic()
    silent = False
    while True:
        try:
            if not queue.live_jobs(jobs):
                return
            silent = False
        except PosttrainError as error:
            if not silent:
                print(f"Slurm's queue is not known: {error}; asked again", file=sys.stderr, flush=True)
            silent = True
        waited = time.monotonic() - started
        time.sleep(min(max(waited / 20, LEAST_PAUSE_SECONDS), MOST_PAUSE_SECONDS))


def _print_ends(point: Point) -> int:
    """Print what became of the stages of a run whose jobs have ended, and return its exit code."""
    states = run_status(point.run, read_queue(point.run))
    for status in states:
        print(f"{status.stage:<22} {status.state:<10} {status.detail}")
    if any(status.state in ("failed", "damaged") for status in states):
        return EXIT_FAILED
    return EXIT_DONE if all(status.state in ("done", "cached") for status in states) else EXIT_REQUEUE
