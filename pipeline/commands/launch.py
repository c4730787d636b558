"""From overrides to runs: what `posttrain run`, `posttrain resume` and `posttrain.pipeline.api` do alike."""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.commands.keeping.room import require_room
from posttrain.pipeline.commands.keeping.transfer import pull_made
from posttrain.pipeline.commands.run import dry_run, note, place_here, prepare, run_pipelines, take_part
from posttrain.pipeline.commands.run_slurm import print_submission, submit_pipelines
from posttrain.pipeline.config.overrides import outvoted
from posttrain.pipeline.config.recipe_file import taken_unasked
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.runs.launched import Launch, this_launch
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.watch.stopping import StopRequests


def launch(overrides: list[str], config_dir: Path | None, keep_going: bool, only_print: bool) -> int:
    """Run the pipelines that overrides compose, or print what would run, and return the exit code."""
    stops = StopRequests()
    with stops.heeded():
        points = prepared(overrides, config_dir)
        if only_print:
            return print_submission(points) if _on_slurm(points) else max(dry_run(point) for point in points.values())
        return start(points, stops, this_launch(overrides, config_dir, keep_going))


def prepared(overrides: list[str], config_dir: Path | None) -> dict[str, Point]:
    """Return the points of a sweep by label, a single one without; say which knobs the graph outvotes.

    Raises UsageError for whatever can be known to be wrong before anything starts.
    """
    for line in taken_unasked(overrides):
        note(line)
    points = {label: prepare(config) for label, config in compose_sweep(overrides, config_dir).items()}
    for line in (line for point in points.values() for line in outvoted(overrides, point.config.stages)):
        note(line)
    return points


def start(points: dict[str, Point], stops: StopRequests, this: Launch) -> int:
    """Take what a remote store has, see that there is room, and run the pipelines or submit them.

    On a machine of several that is not the first, take part in what that one runs.
    """
    if not _on_slurm(points) and place_here(points).rank:
        return take_part(points, stops)
    for point in points.values():
        pull_made(point)
    require_room(list(points.values()))
    return (submit_pipelines if _on_slurm(points) else run_pipelines)(points, stops, this)


def _on_slurm(points: dict[str, Point]) -> bool:
    return next(iter(points.values())).config.launcher.kind == "slurm"
