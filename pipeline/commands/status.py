"""`posttrain status`: how far a run is, read from its folder and from Slurm's queue."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.commands.points import print_sweep
from posttrain.pipeline.runs.needs import size_of
from posttrain.pipeline.runs.rundir import RunDirectory, find_run
from posttrain.pipeline.runs.state import launched_by, run_status
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, UsageError
from posttrain.stage.spec import StageSpec
from posttrain.stage.wording import size


def print_status(root: Path, names: list[str], as_json: bool = False, exit_code: bool = False) -> int:
    """Print the state of every stage of some runs, errors first, and figures over those that differ in seeds alone.

    JSON has a line per run. With ``exit_code`` return 0 if all are made, 1 if one failed, 75 otherwise, as the runs
    themselves would.
    """
    runs = {name: find_run(root, name) for name in names}
    states = {state for run in runs.values() for state in _print_run(run, as_json)}
    if len(runs) > 1 and not as_json:
        print_sweep(runs)
    return _code(states) if exit_code else EXIT_DONE


def _print_run(run: RunDirectory, as_json: bool) -> set[str]:
    """Print a run's stages, and return the states that occur."""
    queue = read_queue(run)
    statuses = run_status(run, queue)
    states = {status.state for status in statuses}
    if as_json:
        stages = [dataclasses.asdict(status) for status in statuses]
        said = {"run": run.name, "launched": launched_by(run, queue), "queue": queue.silent, "stages": stages}
        print(json.dumps(said, ensure_ascii=False))
        return states
    console = console_for_tables()
    for status in statuses:
        if status.state in ("failed", "damaged"):
            console.print(f"error: {escape(status.stage)}: {escape(status.detail)}", style="red", soft_wrap=True)
            if attempts := run.attempts(status.stage):
                console.print(f"log: {attempts[-1]}", highlight=False, soft_wrap=True)
    if queue.silent:
        console.print(f"Slurm's queue is not known: {escape(queue.silent)}", style="yellow", soft_wrap=True)
    table = Table(title=f"run {run.name}: {launched_by(run, queue)}", box=None, title_justify="left")
    for heading in ("stage", "status", *(["job"] if queue.jobs else []), "attempt", "detail"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        job = [status.job] if queue.jobs else []
        table.add_row(escape(status.stage), status.state, *job, status.attempt, escape(status.detail))
    console.print(table)
    print(f"on the disk: {_sizes(run)}")
    return states


def _sizes(run: RunDirectory) -> str:
    """Return what a run's artifacts take, as their manifests say, and the work of its stages."""
    artifacts = work = 0
    for path in (run.path / "stages").glob("*/spec.json"):
        with contextlib.suppress(UsageError):
            spec = StageSpec.read(path)
            work += size_of(Path(spec.work)) if Path(spec.work).exists() else 0
            artifacts += sum(entry["bytes"] for entry in read_manifest(Path(spec.output)).files.values())
    return f"artifacts {size(artifacts)}, work in progress and logs {size(work + size_of(run.path))}"


def _code(states: set[str]) -> int:
    if states & {"failed", "damaged"}:
        return EXIT_FAILED
    return EXIT_DONE if states <= {"done", "cached"} else EXIT_REQUEUE
