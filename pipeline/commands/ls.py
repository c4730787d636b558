"""`posttrain ls`: the runs of a store, the latest first, or its artifacts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.runs.launched import read_launches
from posttrain.pipeline.runs.rundir import RunDirectory, runs_in
from posttrain.pipeline.runs.state import Queue, run_status
from posttrain.pipeline.runs.store import artifact_directories
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.lease import holder
from posttrain.stage.record import read_record, records_of
from posttrain.stage.wording import size


@dataclasses.dataclass(frozen=True)
class RunLine:
    """One run."""

    run: str
    started: str
    state: str
    """``running``, ``failed``, ``done``, or ``stopped``."""
    stages: dict[str, int]
    """How many stages are in each state."""
    said: list[str]
    """The words of its last launch, where they are known."""


@dataclasses.dataclass(frozen=True)
class ArtifactLine:
    """One artifact."""

    artifact: str
    kind: str
    created: str
    bytes: int
    runs: list[str]
    result: str
    verdicts: list[str]
    """What was said of it later: acceptances, promotions …"""


def print_store(root: Path, artifacts: bool, as_json: bool) -> int:
    """Print a line for each run of a store or, with ``artifacts``, for each artifact; the latest first."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give --root DIR, or start a run: posttrain run")
    lines: list[Any] = artifact_lines(root) if artifacts else run_lines(root)
    if as_json:
        print(json.dumps([dataclasses.asdict(line) for line in lines], ensure_ascii=False))
    elif artifacts:
        _print_artifacts(lines)
    else:
        _print_runs(lines)
    return EXIT_DONE


def run_lines(root: Path) -> list[RunLine]:
    """Return the runs below a root, that which was started last first; the queue of a cluster is not asked."""
    runs = sorted(runs_in(root), key=lambda run: -(run.path / "config.yaml").stat().st_mtime_ns)
    return [_run_line(run) for run in runs]


def _run_line(run: RunDirectory) -> RunLine:
    launches = read_launches(run)
    started = launches[-1].time if launches else _clock((run.path / "config.yaml").stat().st_mtime)
    try:
        states = Counter(status.state for status in run_status(run, Queue({}, {})))
    except UsageError:
        states = Counter(damaged=1)
    return RunLine(run.name, started, _whole(run, states), dict(states), launches[-1].overrides if launches else [])


def _whole(run: RunDirectory, states: Counter[str]) -> str:
    if states["failed"] or states["damaged"]:
        return "failed"
    if holder(run.lease) is not None or states["running"]:
        return "running"
    return "done" if states["done"] + states["cached"] == states.total() else "stopped"


def artifact_lines(root: Path) -> list[ArtifactLine]:
    """Return the artifacts of a store, the latest first."""
    runs: dict[str, list[str]] = {}
    for run in runs_in(root):
        for path in sorted((run.path / "stages").glob("*/spec.json")):
            runs.setdefault(Path(json.loads(path.read_text(encoding="utf-8"))["output"]).name, []).append(run.name)
    found = []
    for directory in artifact_directories(root):
        manifest = read_manifest(directory)
        bytes_ = sum(entry["bytes"] for entry in manifest.files.values())
        verdicts = [read_record(path)["what"] for path in records_of(directory)]
        of_runs = runs.get(directory.name, [])
        line = (directory.name, manifest.kind, manifest.created, bytes_, of_runs, manifest.headline, verdicts)
        found.append(ArtifactLine(*line))
    return sorted(found, key=lambda line: line.created, reverse=True)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    return table


def _print_runs(lines: list[RunLine]) -> None:
    table = _table("run", "started", "state", "stages", "posttrain run …")
    for line in lines:
        stages = ", ".join(f"{count} {state}" for state, count in line.stages.items())
        table.add_row(*map(escape, (line.run, line.started, line.state, stages, " ".join(line.said))))
    console_for_tables().print(table if lines else "no runs yet; start one: posttrain run")


def _print_artifacts(lines: list[ArtifactLine]) -> None:
    table = _table("artifact", "kind", "made", "size", "runs", "result", "verdicts")
    for line in lines:
        runs, verdicts = ", ".join(line.runs), ", ".join(line.verdicts)
        cells = (line.artifact, line.kind, line.created, size(line.bytes), runs, line.result, verdicts)
        table.add_row(*map(escape, cells))
    console_for_tables().print(table if lines else "no artifacts yet")
    print(f"{len(lines)} in all: {size(sum(line.bytes for line in lines))}")
