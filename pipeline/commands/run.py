"""`posttrain run`: from a configuration to its artifacts."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from posttrain.pipeline.commands.points import print_sweep
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.curation import told_curation
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.keys import check_external_paths
from posttrain.pipeline.graph.lengths import check_lengths
from posttrain.pipeline.graph.overlap import unguarded
from posttrain.pipeline.local.by_hand import arguments_of
from posttrain.pipeline.local.follower import Follower, follow
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.local.leader import Leader, leading
from posttrain.pipeline.local.machines import Place, place_of
from posttrain.pipeline.local.scheduler import Scheduler, State, Task
from posttrain.pipeline.runs.launched import Launch, note_launch
from posttrain.pipeline.runs.notice import give_notice
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.pipeline.watch.progress import Display, console_for_tables, stage_table, version_warnings
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.artifact import Manifest
from posttrain.stage.errors import EXIT_DONE, EXIT_GATE, EXIT_REQUEUE, LeaseHeldError
from posttrain.stage.lease import Lease

PAGES = {"report": ("report", "report.html"), "data_page": ("data", "data.html")}
"""Kind of artifact → what its page is called, and its file."""


def prepare(config: PipelineConfig) -> Point:
    """Return a pipeline with its stages and its run's folder; say what a user may not have meant.

    Raises UsageError for whatever can be known to be wrong before anything starts.
    """
    stages = build_graph(config)
    check_external_paths(stages)
    check_lengths(stages)
    for line in unguarded(stages):
        note(line)
    run = RunDirectory.of(config, stages)
    run.check_unused(config, stages)
    return Point(config, stages, run)


@functools.cache
def note(line: str) -> None:
    """Say something once, however many points of a sweep it holds for."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def run_pipelines(points: dict[str, Point], stops: StopRequests, launch: Launch | None = None) -> int:
    """Run the points of a sweep one after the other, each taking over what those before it made; return the exit code.

    A stop is one of the whole sweep. Raises UsageError where other machines could not reach this one.
    """
    with leading(place_here(points), [str(point.run.path) for point in points.values()]) as others:
        code = _run_all(points, stops, launch, others)
        others.dismiss(code)
        return code


def _run_all(points: dict[str, Point], stops: StopRequests, launch: Launch | None, others: Leader) -> int:
    codes: dict[str, int] = {}
    for label, point in points.items():
        if stops.wanted:
            break
        if label:
            print(f"\n{label}", flush=True)
        codes[label] = run_pipeline(point, stops, launch, others)
    if len(points) > 1:
        print_sweep({label: points[label].run for label in codes if points[label].run.identity.exists()})
    if left := [label for label in points if label not in codes]:
        print(f"not run: {', '.join(left)}; the same command goes on", file=sys.stderr, flush=True)
    return next((code for code in codes.values() if code != EXIT_DONE), EXIT_REQUEUE if left else EXIT_DONE)


def run_pipeline(point: Point, stops: StopRequests, launch: Launch | None, others: Leader) -> int:
    """Make every artifact of a pipeline that is not there yet, and return the exit code.

    Raises UsageError before anything starts when the configuration cannot work, and LeaseHeldError when another
    launcher holds the run's folder.
    """
    config, run = point.config, point.run
    launcher = dataclasses.replace(local_launcher(config, point.stages), place=others.place)
    keep_going = launch is not None and launch.keep_going
    console = console_for_tables()
    with Display(console) as display:
        resolver = Resolver(config, run, launcher.distributed)
        scheduler = Scheduler(
            point.stages, resolver, run, launcher, config.launcher, display, stops, keep_going, others
        )
        if not scheduler.nothing_to_do():
            with Lease(run.lease, run.name, config.launcher.lease_wait_seconds):
                _refuse_beside_jobs(run)
                run.open(config, point.stages)
                if launch is not None:
                    note_launch(run, launch)
                for line in [f"run {run.name} → {run.path}", *told_curation(point.stages)]:
                    console.print(line, highlight=False, soft_wrap=True)
                with stops.noted():
                    scheduler.run()
    with stops.noted():
        code = _report_errors(scheduler, run)
        cached = {name: task.made.manifest for name, task in scheduler.tasks.items() if task.made and not task.process}
        print_version_warnings(cached)
        _print_table(scheduler, run, console)
        if any(task.process for task in scheduler.tasks.values()):
            give_notice(config.launcher.notify, run, code, _in_a_line(scheduler, run))
    return code


def take_part(points: dict[str, Point], stops: StopRequests) -> int:
    """Run on this machine, one of several, what the first of them says; return the exit code."""
    place, present = place_here(points), list(points.values())
    launchers = [dataclasses.replace(local_launcher(point.config, point.stages), place=place) for point in present]
    parts = {str(point.run.path): (point, own) for point, own in zip(present, launchers, strict=True)}
    follower = Follower(parts, place, stops, console_for_tables())
    timeout = present[0].config.distributed.timeout_seconds
    return follow(follower, functools.partial(_all_made, present, stops), timeout)


def place_here(points: dict[str, Point]) -> Place:
    """Return which of the machines of a command this one is; raise UsageError where nothing says it."""
    return place_of(next(iter(points.values())).config.distributed, os.environ)


def _all_made(points: list[Point], stops: StopRequests) -> bool:
    """Return whether every artifact of some pipelines is there."""
    for point in points:
        launcher = local_launcher(point.config, point.stages)
        resolver = Resolver(point.config, point.run, launcher.distributed)
        with Display(Console(quiet=True)) as display:
            scheduler = Scheduler(point.stages, resolver, point.run, launcher, point.config.launcher, display, stops)
            if not scheduler.nothing_to_do():
                return False
    return True


def _refuse_beside_jobs(run: RunDirectory) -> None:
    """Raise LeaseHeldError where Slurm still has jobs of the run; where it cannot be asked, they mind themselves."""
    if live := read_queue(run).live:
        raise LeaseHeldError(
            f"run {run.name}: {len(live)} of its jobs are in Slurm's queue ({', '.join(live)}); "
            f"`posttrain cancel {run.name}` first, wait for them, or give another run_name"
        )


def dry_run(point: Point) -> int:
    """Print the stages in order, what would become of each, and lines that run by hand what is not made.

    Nothing is written.
    """
    place = place_of(point.config.distributed, os.environ)
    launcher = dataclasses.replace(local_launcher(point.config, point.stages), place=place)
    resolver = Resolver(point.config, point.run, launcher.distributed)
    made: dict[str, Made] = {}
    print("\n## ".join([f"run {point.run.name} → {point.run.path}", *told_curation(point.stages)]))
    for stage in point.stages:
        needed = dict.fromkeys((*stage.inputs.values(), *stage.gates))
        missing = [parent for parent in needed if parent not in made]
        if missing:
            status = f"waits for {', '.join(missing)}"
        else:
            spec = resolver.spec(stage, made)
            found = committed(spec)
            if found is not None:
                made[stage.name] = found
            status = f"{'cached' if found else 'would run'}  {Path(spec.output).name}"
        print(f"\n# {stage.name}  {stage.type.run}  {status}")
        if stage.name not in made:
            arguments = arguments_of(stage, point.run, made, point.config.seed, launcher.distributed(stage))
            print(launcher.command(stage, arguments).shell())
    print_version_warnings({name: artifact.manifest for name, artifact in made.items()})
    return EXIT_DONE


def print_version_warnings(cached: dict[str, Manifest]) -> None:
    """Say which artifacts that are taken as they are were made with other versions of what computes them."""
    for line in version_warnings(cached):
        print(line, file=sys.stderr, flush=True)


def _report_errors(scheduler: Scheduler, run: RunDirectory) -> int:
    """Print one line per failed stage on stderr, the first failure first; return the run's exit code."""
    ended = [task for task in scheduler.tasks.values() if task.code != EXIT_DONE]
    ended.sort(key=lambda task: task.state is State.STOPPED)
    for task in ended:
        _print_error(task, run)
    refused = [task for task in scheduler.tasks.values() if task.refusal is not None]
    for task in refused:
        print(f"error: gate {task.stage.name}: {task.refusal}", file=sys.stderr, flush=True)
    if ended or refused:
        return ended[0].code if ended else EXIT_GATE
    unfinished = any(task.made is None for task in scheduler.tasks.values())
    return EXIT_REQUEUE if unfinished else EXIT_DONE


def _in_a_line(scheduler: Scheduler, run: RunDirectory) -> str:
    """Return how a run ended, for a message: what went wrong first, or what the last stage says."""
    tasks = list(scheduler.tasks.values())
    wrong = [f"{task.stage.name}: {task.message}" for task in tasks if task.code != EXIT_DONE]
    refused = [f"gate {task.stage.name}: {task.refusal}" for task in tasks if task.refusal is not None]
    made = [task.made.manifest for task in tasks if task.made is not None]
    last = [f"{len(made)} of {len(tasks)} stages are made; {made[-1].stage}: {made[-1].headline}"] if made else []
    return f"{run.name}: {[*wrong, *refused, *last, 'nothing was made'][0]}".splitlines()[0]


def _print_error(task: Task, run: RunDirectory) -> None:
    word = "stopped" if task.state is State.STOPPED else "error"
    for line in task.message.splitlines() or ["it gave no reason"]:
        print(f"{word}: {task.stage.name}: {line}", file=sys.stderr)
    if task.process is not None:
        print(f"log: {task.process.log}", file=sys.stderr)
    sys.stderr.flush()


def _model_lines(made: dict[str, Made], tasks: Iterable[Task]) -> list[str]:
    """Return where the models lie that no other training stage went on from, and how to take one out or ask it."""
    trained = [task.stage for task in tasks if task.stage.type.kind == "model" and task.stage.name in made]
    trained_from = {parent for stage in trained for parent in stage.inputs.values()}
    lines = []
    for name, artifact in made.items():
        if artifact.manifest.kind != "model" or name in trained_from:
            continue
        root = artifact.directory.parent.parent
        rooted = "" if root == Path("outputs").resolve() else f" --root {shlex.quote(str(root))}"
        merge = " --merge" if artifact.manifest.config.get("adapter", {}).get("kind", "full") != "full" else ""
        lines.append(f"model: {artifact.directory}")
        lines.append(f"  posttrain export {artifact.directory.name} {name}-model{merge}{rooted}")
        lines.append(f"  posttrain generate {artifact.directory.name}{rooted}")
    return lines


def _print_table(scheduler: Scheduler, run: RunDirectory, console: Console) -> None:
    made = {name: task.made for name, task in scheduler.tasks.items() if task.made is not None}
    states = {name: str(task.state) for name, task in scheduler.tasks.items()}
    console.print(stage_table(states, {name: artifact.manifest for name, artifact in made.items()}, f"run {run.name}"))
    if any(task.made is None and task.state is not State.BLOCKED for task in scheduler.tasks.values()):
        console.print("the same command goes on from here")
    for line in _model_lines(made, scheduler.tasks.values()):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for artifact in made.values():
        if (page := PAGES.get(artifact.manifest.kind)) is not None:
            console.print(f"{page[0]}: {artifact.directory / page[1]}", soft_wrap=True, highlight=False)
