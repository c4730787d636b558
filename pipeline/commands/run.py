"""`posttrain run`: from a configuration to its artifacts."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.keys import check_external_paths
from posttrain.pipeline.graph.lengths import check_lengths
from posttrain.pipeline.graph.overlap import unguarded
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.local.scheduler import Scheduler, State, Task
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.watch.progress import Display, console_for_tables, stage_table, version_warnings
from posttrain.stage.artifact import Manifest
from posttrain.stage.errors import EXIT_DONE, EXIT_REQUEUE
from posttrain.stage.lease import Lease

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def prepare(config: PipelineConfig) -> Point:
    """Return a pipeline with its stages and its run's folder; say what a user may not have meant.

    Raises UsageError for whatever can be known to be wrong before anything starts.
    """
    stages = build_graph(config)
    check_external_paths(stages)
    check_lengths(stages)
    for line in unguarded(stages):
        _note(line)
    run = RunDirectory.of(config, stages)
    run.check_unused(config, stages)
    return Point(config, stages, run)


@functools.cache
def _note(line: str) -> None:
    """Say something once, however many points of a sweep it holds for."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def run_pipelines(points: dict[str, Point]) -> int:
    """Run the points of a sweep here one after the other, each taking over what those before it made."""
    codes = []
    for label, point in points.items():
        if label:
            print(f"\n{label}", flush=True)
        codes.append(run_pipeline(point))
    return next((code for code in codes if code != EXIT_DONE), EXIT_DONE)


def run_pipeline(point: Point) -> int:
    """Make every artifact of a pipeline that is not there yet, and return the exit code.

    Raises UsageError before anything starts when the configuration cannot work, and LeaseHeldError when another
    launcher holds the run's folder.
    """
    config, run = point.config, point.run
    launcher = local_launcher(config, point.stages)
    console = console_for_tables()
    with Display(console) as display:
        resolver = Resolver(config, run, launcher.distributed)
        scheduler = Scheduler(point.stages, resolver, run, launcher, config.launcher, display)
        if not scheduler.nothing_to_do():
            run.open(config, point.stages)
            console.print(f"run {run.name} → {run.path}", highlight=False, soft_wrap=True)
            with Lease(run.lease, run.name, config.launcher.lease_wait_seconds), _stopping(scheduler):
                scheduler.run()
    code = _report_errors(scheduler, run)
    cached = {name: task.made.manifest for name, task in scheduler.tasks.items() if task.made and not task.process}
    print_version_warnings(cached)
    _print_table(scheduler, run, console)
    return code


def dry_run(point: Point) -> int:
    """Print the stages in order, what would become of each, and their command lines; write nothing."""
    launcher = local_launcher(point.config, point.stages)
    resolver = Resolver(point.config, point.run, launcher.distributed)
    made: dict[str, Made] = {}
    print(f"run {point.run.name} → {point.run.path}")
    for stage in point.stages:
        missing = [parent for parent in dict.fromkeys(stage.inputs.values()) if parent not in made]
        if missing:
            status = f"waits for {', '.join(missing)}"
        else:
            spec = resolver.spec(stage, made)
            found = committed(spec)
            if found is not None:
                made[stage.name] = found
            status = f"{'cached' if found else 'would run'}  {Path(spec.output).name}"
        print(f"\n# {stage.name}  {stage.type.run}  {status}")
        print(launcher.command(stage, point.run.spec(stage.name)).shell())
    print_version_warnings({name: artifact.manifest for name, artifact in made.items()})
    return EXIT_DONE


def print_version_warnings(cached: dict[str, Manifest]) -> None:
    """Say which artifacts that are taken as they are were made with other versions of what computes them."""
    for line in version_warnings(cached):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _stopping(scheduler: Scheduler) -> Iterator[None]:
    """Turn stop signals into requests to the scheduler; leave alone those that our parent told us to ignore."""

    def stop(number: int, frame: FrameType | None) -> None:
        scheduler.request_stop(signal.Signals(number).name)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _report_errors(scheduler: Scheduler, run: RunDirectory) -> int:
    """Print one line per failed stage on stderr, the first failure first; return the run's exit code."""
    ended = [task for task in scheduler.tasks.values() if task.code != EXIT_DONE]
    ended.sort(key=lambda task: task.state is State.STOPPED)
    for task in ended:
        _print_error(task, run)
    if ended:
        return ended[0].code
    unfinished = any(task.made is None for task in scheduler.tasks.values())
    return EXIT_REQUEUE if unfinished else EXIT_DONE


def _print_error(task: Task, run: RunDirectory) -> None:
    word = "stopped" if task.state is State.STOPPED else "error"
    for line in task.message.splitlines() or ["it gave no reason"]:
        print(f"{word}: {task.stage.name}: {line}", file=sys.stderr)
    if task.process is not None:
        print(f"log: {task.process.log}", file=sys.stderr)
    sys.stderr.flush()


def _print_table(scheduler: Scheduler, run: RunDirectory, console: Console) -> None:
    made = {name: task.made for name, task in scheduler.tasks.items() if task.made is not None}
    states = {name: str(task.state) for name, task in scheduler.tasks.items()}
    console.print(stage_table(states, {name: artifact.manifest for name, artifact in made.items()}, f"run {run.name}"))
    if any(task.made is None for task in scheduler.tasks.values()):
        console.print("the same command goes on from here")
    for artifact in made.values():
        if artifact.manifest.kind == "report":
            console.print(f"report: {artifact.directory / 'report.html'}", soft_wrap=True, highlight=False)
