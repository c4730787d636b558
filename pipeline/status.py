"""`posttrain status`: how far a run is, read from its folder alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.progress import duration, latest_metrics
from posttrain.pipeline.resolve import committed
from posttrain.pipeline.rundir import RunDirectory, find_run
from posttrain.stage.errors import EXIT_DONE, EXIT_REQUEUE
from posttrain.stage.lease import holder
from posttrain.stage.outcome import read_outcome
from posttrain.stage.spec import StageSpec


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """One line of the status table."""

    stage: str
    state: str
    detail: str
    attempt: str


def print_status(root: Path, name: str) -> int:
    """Print the state of every stage of a run, errors first."""
    run = find_run(root, name)
    statuses = run_status(run)
    console = Console()
    for status in statuses:
        if status.state == "failed":
            console.print(f"error: {escape(status.stage)}: {escape(status.detail)}", style="red", soft_wrap=True)
            console.print(f"log: {run.attempts(status.stage)[-1]}", highlight=False, soft_wrap=True)
    launcher = holder(run.lease)
    table = Table(title=f"run {run.name}: {'launched by ' + launcher if launcher else 'no launcher runs'}", box=None)
    table.title_justify = "left"
    for heading in ("stage", "status", "attempt", "detail"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        table.add_row(escape(status.stage), status.state, status.attempt, escape(status.detail))
    console.print(table)
    return EXIT_DONE


def run_status(run: RunDirectory) -> list[StageStatus]:
    """Return the state of every stage of a run, in the order of its identity file."""
    identity = json.loads((run.path / "identity.json").read_text(encoding="utf-8"))
    return [_stage_status(run, stage) for stage in identity["stages"]]


def _stage_status(run: RunDirectory, stage: str) -> StageStatus:
    attempts = run.attempts(stage)
    attempt = str(len(attempts)) if attempts else ""
    path = run.spec(stage)
    if not path.exists():
        return StageStatus(stage, "pending", "", attempt)
    spec = StageSpec.read(path)
    work = Path(spec.work)
    made = committed(spec)
    if made is not None:
        detail = f"{made.directory.name}  {duration(made.manifest.wall_seconds)}  {made.manifest.headline}"
        return StageStatus(stage, "done" if attempts else "cached", detail, attempt)
    if (who := holder(work / "lease")) is not None:
        return StageStatus(stage, "running", f"{latest_metrics(work / 'metrics.jsonl')}  {who}".strip(), attempt)
    outcome = read_outcome(Path(spec.outcome))
    if outcome is None:
        if not attempts:
            return StageStatus(stage, "pending", "", attempt)
        return StageStatus(stage, *_without_outcome(run, work), attempt)
    code, message = outcome.code, outcome.message
    if code == EXIT_REQUEUE:
        return StageStatus(stage, "stopped", message, attempt)
    if code == EXIT_DONE:
        return StageStatus(stage, "pending", "its artifact was removed", attempt)
    return StageStatus(stage, "failed", message.splitlines()[0] if message else f"exit code {code}", attempt)


def _without_outcome(run: RunDirectory, work: Path) -> tuple[str, str]:
    """Say what a stage that left no outcome is: on its way under a living launcher, or killed."""
    if holder(run.lease) is not None:
        return "starting", ""
    return "killed", f"{latest_metrics(work / 'metrics.jsonl')}  the same command goes on".strip()
