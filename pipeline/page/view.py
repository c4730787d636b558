"""What the page shows of a run, read from its folder and its artifacts; nothing is written."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.evaluate.page.figures.plots import Curve
from posttrain.evaluate.page.training_logs import Panel, gather
from posttrain.pipeline.runs.progress import HowFar, how_far
from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.pipeline.runs.state import Queue, StageStatus, latest_beats, launched_by, run_status
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.stage.artifact import LOGS
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import StageSpec
from posttrain.stage.tracking import METRICS, read_metrics

ALARMS = ("failed", "damaged", "blocked", "killed")
"""States in which a stage asks for somebody."""
SHOWN_FIRST = ("running", "failed", "blocked", "killed", "stopped")
LOG_BYTES = 6000
LOG_LINES = 30
SAMPLES = 8
MOST_POINTS = 400
"""Of a curve: what a screen can show of one."""
QUEUE_SECONDS = 30.0
"""Between two questions to Slurm, however many pages are open."""


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One line of the table of stages."""

    status: StageStatus
    at: HowFar | None
    """How far a running stage is."""


@dataclasses.dataclass(frozen=True)
class RunView:
    """A run at one moment."""

    name: str
    launched: str
    silent: str
    """Why Slurm could not be asked."""
    rows: list[StageRow]

    @property
    def made(self) -> int:
        """How many stages are made."""
        return sum(row.status.state in ("done", "cached") for row in self.rows)

    @property
    def alarms(self) -> list[StageStatus]:
        """What somebody should look at."""
        return [row.status for row in self.rows if row.status.state in ALARMS]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt, what a model answered, and what was thought of it."""

    prompt: str
    response: str
    figures: str


@dataclasses.dataclass(frozen=True)
class StageView:
    """What one stage logged."""

    name: str
    panels: list[tuple[Panel, list[Curve]]]
    samples: list[Sample]
    log: str
    log_path: str


class Watched:
    """A run that is looked at again and again; remembers what Slurm said, so as not to ask it at every look."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._queue: Queue | None = None
        self._asked = 0.0

    def look(self) -> RunView:
        """Return the run as it is now; raise UsageError when its folder cannot be read."""
        queue = self._jobs()
        statuses = run_status(self.run, queue)
        rows = [StageRow(status, self._at(status.stage) if status.state == "running" else None) for status in statuses]
        return RunView(self.run.name, launched_by(self.run, queue), queue.silent, rows)

    def most_telling(self, view: RunView) -> str:
        """Return the stage that a person likely wants to see: one that runs or failed, else the last that trained."""
        states = {row.status.stage: row.status.state for row in view.rows}
        wanting = (name for state in SHOWN_FIRST for name, its in states.items() if its == state)
        trained = (name for name in reversed(states) if any(_either(self._folder(name), METRICS)))
        return next(wanting, None) or next(trained, next(iter(states), ""))

    def stage(self, name: str) -> StageView:
        """Return what a stage logged; empty where it has not begun."""
        folder = self._folder(name)
        attempts = self.run.attempts(name)
        return StageView(
            name,
            [(panel, [_thinned(line) for line in lines]) for panel, lines in gather(_metrics(folder))],
            _samples(folder),
            _tail(attempts[-1]) if attempts else "",
            str(attempts[-1]) if attempts else "",
        )

    def _jobs(self) -> Queue:
        if self._queue is None or time.monotonic() - self._asked > QUEUE_SECONDS:
            self._queue, self._asked = read_queue(self.run), time.monotonic()
        return self._queue

    def _at(self, name: str) -> HowFar:
        return how_far((self._folder(name) or Path()) / METRICS, latest_beats(self.run, name))

    def _folder(self, name: str) -> Path | None:
        """Return where a stage's logs are: in its artifact once that is made, before that where it works."""
        path = self.run.spec(name)
        try:
            spec = StageSpec.read(path)
            made = committed(spec)
        except (FileNotFoundError, UsageError):
            return None
        return made.directory if made is not None else Path(spec.work)


def _metrics(folder: Path | None) -> list[dict[str, Any]]:
    for path in _either(folder, METRICS):
        return read_metrics(path)
    return []


def _either(folder: Path | None, name: str) -> Iterable[Path]:
    """Yield the file of that name in a work folder, or among the logs of an artifact, if there is one."""
    if folder is not None:
        yield from (path for path in (folder / LOGS / name, folder / name) if path.is_file())


def _thinned(line: Curve) -> Curve:
    """Return a curve of no more points than are seen, its last one among them."""
    label, steps, values = line
    stride = -(-len(steps) // MOST_POINTS)
    places = [*range(len(steps) - 1, -1, -max(stride, 1))][::-1]
    return label, [steps[place] for place in places], [values[place] for place in places]


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-LOG_LINES:])


def _samples(folder: Path | None) -> list[Sample]:
    for path in _either(folder, "samples.jsonl"):
        with path.open(encoding="utf-8") as file:
            whole = [line for line in collections.deque(file, SAMPLES + 1) if line.endswith("\n")]
        return [_rollout_sample(line) for line in reversed(whole[-SAMPLES:])]
    if folder is not None and (table := folder / "items.parquet").is_file():
        return _items(table)
    return []


def _rollout_sample(line: str) -> Sample:
    row = json.loads(line)
    said = [f"{turn['role']}: {turn.get('content') or ''}" for turn in row["prompt"]]
    return Sample("\n".join(said), row["response"], f"step {row['step']} · score {row['score']}")


def _items(path: Path) -> list[Sample]:
    """Return the first answers of an evaluation of a policy; none for other tables."""
    wanted = ("prompt", "response", "correct", "task", "language")
    with pq.ParquetFile(path) as file:
        if not set(wanted) <= set(file.schema_arrow.names):
            return []
        rows = next(file.iter_batches(SAMPLES, columns=list(wanted)), None)
    return [
        Sample(row["prompt"], row["response"], f"{row['task']} · {row['language']} · score {row['correct']:g}")
        for row in (rows.to_pylist() if rows is not None else [])
    ]
