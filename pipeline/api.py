"""The pipeline for notebooks and programs: compose a configuration, run it, read what it made.

    from posttrain.pipeline import api

    run = api.run("recipe=smoke", "train.dpo.beta=0.2")
    run.artifact("evaluate_dpo").summary["overall"]
    api.load("dpo").directory            # a model; transformers reads it as it reads any folder

What a command of `posttrain` prints as an error is raised here as a PosttrainError with the same text.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.pipeline.commands.launch import prepared, start
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.runs.launched import this_launch
from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_config
from posttrain.pipeline.runs.state import StageStatus, run_status
from posttrain.pipeline.runs.store import find_artifact
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.errors import EXIT_DONE, PosttrainError, UsageError, did_you_mean
from posttrain.stage.tracking import logged_metrics

OUTPUTS = "outputs"
SUMMARIES = ("summary.json", "verdict.json", "accounting.json")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A committed artifact: an immutable folder and its manifest."""

    directory: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        """What it is, as its manifest says: ``dataset`` for example."""
        return self.manifest.kind

    @property
    def headline(self) -> str:
        """The one figure that its stage says of it."""
        return self.manifest.headline

    @property
    def summary(self) -> dict[str, Any]:
        """Figures of an evaluation, the verdict of a gate or counts of a dataset; raise UsageError for others."""
        for name in SUMMARIES:
            if (path := self.directory / name).is_file():
                found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return found
        raise UsageError(
            f"{self.directory.name}: a {self.kind} has no summary; metrics, table and directory it may have"
        )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What training logged, a row an entry; empty for a stage that does not train."""
        return logged_metrics(self.directory)

    @property
    def parents(self) -> dict[str, Artifact]:
        """What it was made from, by input; raise UsageError for one that is no longer beside it."""
        return {name: _read(self.directory.parent / of.name) for name, of in self.manifest.parents.items()}

    def table(self, name: str | None = None) -> pa.Table:
        """Return one of its Parquet files, ``items`` for example; without a name, the only one or ``train``.

        Raises UsageError, with the names there are, when there is none of that name.
        """
        names = sorted(path.stem for path in self.directory.glob("*.parquet"))
        chosen = name or ("train" if "train" in names else names[0] if len(names) == 1 else "")
        if chosen not in names:
            there = f"; there are {', '.join(names)}" if names else "; it holds none"
            raise UsageError(f"{self.directory.name}: no table {chosen!r}{did_you_mean(chosen, names) or there}")
        return pq.read_table(self.directory / f"{chosen}.parquet")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a pipeline, going on or ended."""

    directory: RunDirectory

    @property
    def name(self) -> str:
        """Its name, as `posttrain status` takes it."""
        return self.directory.name

    @property
    def config(self) -> PipelineConfig:
        """Its configuration as it was composed."""
        return read_config(self.directory)

    @property
    def stages(self) -> dict[str, StageStatus]:
        """How far each stage is now, in the order of the graph."""
        statuses = run_status(self.directory, read_queue(self.directory))
        return {status.stage: status for status in statuses}

    def artifact(self, stage: str) -> Artifact:
        """Return what the run made or took as a stage; raise UsageError where it has none."""
        return load(f"{self.name}/{stage}", self.directory.root)


class RunFailedError(PosttrainError):
    """A run that did not come to its end; ``run`` says how far it came."""

    def __init__(self, run: Run, exit_code: int) -> None:
        said = [
            f"{status.stage} {status.state}{status.detail and ': '}{status.detail}"
            for status in run.stages.values()
            if status.state not in ("done", "cached", "pending")
        ]
        super().__init__("\n".join(said) or f"{run.name}: stopped; the same call goes on")
        self.run, self.exit_code = run, exit_code


def compose(*overrides: str, config_dir: Path | str | None = None) -> PipelineConfig:
    """Return the configuration that ``posttrain run`` would run with these overrides.

    Raises UsageError for what does not compose, and for several values of a knob: a sweep is a loop here.
    """
    configs = compose_sweep(list(overrides), _path(config_dir))
    return configs[_only(configs)]


def run(*overrides: str, config_dir: Path | str | None = None, keep_going: bool = False) -> Run:
    """Run a pipeline, or what is left of it, and return it; on a cluster, once its jobs are submitted.

    Made artifacts are taken as they are. An interrupt lets stages save what they have, and the same call goes on.
    Raises RunFailedError when a stage failed, stopped or did not pass its gate, UsageError before anything starts.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("api.run: heeds Ctrl-C, which Python gives to the main thread alone; call it there")
    stops = StopRequests()
    with stops.heeded():
        points = prepared(list(overrides), _path(config_dir))
        found = Run(points[_only(points)].run)
        code = start(points, stops, this_launch(list(overrides), _path(config_dir), keep_going))
    if code != EXIT_DONE:
        raise RunFailedError(found, code)
    return found


def open_run(name: str = "latest", root: Path | str = OUTPUTS) -> Run:
    """Return a run that was started before; raise UsageError, with the nearest name, when there is none."""
    return Run(find_run(Path(root), name))


def load(name: str, root: Path | str = OUTPUTS) -> Artifact:
    """Return an artifact by folder, stage, ``RUN/STAGE``, or the start of its name, key or digest.

    Raises UsageError with the candidates or the nearest name when that is none, or more than one.
    """
    return _read(find_artifact(Path(root), name))


def _read(directory: Path) -> Artifact:
    return Artifact(directory, read_manifest(directory))


def _path(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder)


def _only(points: dict[str, Any]) -> str:
    if len(points) > 1:
        raise UsageError(f"{len(points)} points ({', '.join(points)}): run them in a loop, one call each")
    return next(iter(points))
