"""The folder of one run: its configuration, the work orders of its stages, and a log per attempt.

<root>/runs/<run name>/config.yaml                   as composed
                       identity.json                 what the run makes: two runs that differ here share no folder
                       stages/<stage>/spec.json      work order; outcome.json beside it
                       logs/<stage>/attempt_1.log    latest → the newest
                       slurm/                        batch scripts and jobs.json, where stages are Slurm jobs
                       lease                         held by the launcher while it starts stages
<root>/runs/latest                                   → the run that was started last
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import Stage
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.files import canonical_json, read_state, sha256_text, write_text_atomic
from posttrain.stage.lease import last_holder
from posttrain.stage.outcome import Outcome
from posttrain.stage.schema import build, key_values, to_dict
from posttrain.stage.spec import StageSpec
from posttrain.stage.wording import differences

VERSION = 1
"""Of the form of the files that this module writes."""
WAY_OUT = "delete it, and the same `posttrain run` writes it again"
LATEST = "latest"


def identity(config: PipelineConfig, stages: list[Stage]) -> dict[str, Any]:
    """Return what a run makes, however it is launched: its graph, its seed, and all knobs that are part of a key."""
    own_seeds = {stage.name: {"seed": stage.seed} for stage in stages if stage.seed != config.seed}
    return {
        "seed": config.seed,
        "stages": {
            stage.name: {"run": stage.type.run, "inputs": stage.inputs, "config": key_values(stage.config, str)}
            | own_seeds.get(stage.name, {})
            for stage in stages
        },
    }


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.path = root / "runs" / name

    @classmethod
    def of(cls, config: PipelineConfig, stages: list[Stage]) -> RunDirectory:
        """Return the folder of a configuration: the one it names, or one named after what the run makes."""
        digest = sha256_text(canonical_json(identity(config, stages)))
        return cls(Path(config.root).resolve(), config.run_name or f"{config.name}-{digest[:8]}")

    @property
    def identity(self) -> Path:
        """What the run makes."""
        return self.path / "identity.json"

    @property
    def lease(self) -> Path:
        """Lock of the launcher."""
        return self.path / "lease"

    def spec(self, stage: str) -> Path:
        """Work order of a stage."""
        return self.path / "stages" / stage / "spec.json"

    def outcome(self, stage: str) -> Path:
        """What the last attempt of a stage left: exit code and error line."""
        return self.path / "stages" / stage / "outcome.json"

    def leave_outcome(self, stage: str, outcome: Outcome) -> None:
        """Leave how a stage ended that no process was started for."""
        self.outcome(stage).parent.mkdir(parents=True, exist_ok=True)
        outcome.write(self.outcome(stage))

    @property
    def jobs(self) -> Path:
        """Slurm's job id of every stage that was submitted."""
        return self.path / "slurm" / "jobs.json"

    def attempts_file(self, stage: str) -> Path:
        """Ledger of the attempts of a stage's jobs."""
        return self.path / "stages" / stage / "attempts.jsonl"

    def check_unused(self, config: PipelineConfig, stages: list[Stage]) -> None:
        """Raise UsageError when the folder belongs to a run that makes something else."""
        try:
            recorded = read_state(self.identity, VERSION, WAY_OUT)
        except FileNotFoundError:
            return
        wanted = json.loads(canonical_json(identity(config, stages)))
        if recorded != wanted:
            where = "; ".join(differences(recorded, wanted)[:3])
            raise UsageError(
                f"run_name: {self.path} belongs to a run with another configuration ({where}); "
                f"give that configuration to resume it, another run_name to start beside it, "
                f"or delete the folder (artifacts stay) to reuse its name"
            )

    def open(self, config: PipelineConfig, stages: list[Stage]) -> None:
        """Create the folder, or find it as it was left; nothing that is up to date is written again."""
        self.check_unused(config, stages)
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        if _text(self.path / "config.yaml") != text:
            write_text_atomic(self.path / "config.yaml", text)
        if not self.identity.exists():
            made = {"version": VERSION, **identity(config, stages)}
            text = json.dumps(made, indent=2, ensure_ascii=False)  # in the order of the stages
            write_text_atomic(self.identity, text + "\n")
        _point(self.path.parent / LATEST, self.name)

    def knows(self, spec: StageSpec | None) -> bool:
        """Return whether the folder holds exactly this work order; one that cannot be read is written again."""
        try:
            return spec is not None and StageSpec.read(self.spec(spec.stage)) == spec
        except (FileNotFoundError, UsageError):
            return False

    def write_spec(self, spec: StageSpec) -> None:
        """Leave a stage's work order where its processes and `posttrain status` find it."""
        if not self.knows(spec):
            spec.write(self.spec(spec.stage))

    def attempts(self, stage: str) -> list[Path]:
        """Return the logs of a stage's attempts, oldest first."""
        logs = (self.path / "logs" / stage).glob("attempt_*.log")
        return sorted(logs, key=lambda path: int(re.sub(r"\D", "", path.stem)))

    def new_log(self, stage: str) -> Path:
        """Return the log file of a new attempt, with ``latest`` pointing at it."""
        log = self.path / "logs" / stage / f"attempt_{len(self.attempts(stage)) + 1}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        _point(log.parent / "latest", log.name)
        return log


def read_config(run: RunDirectory) -> PipelineConfig:
    """Return the configuration of a run as it was composed; raise UsageError when it cannot be read."""
    path = run.path / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable ({' '.join(str(error).split())}); {WAY_OUT}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: holds no configuration; {WAY_OUT}")
    try:
        return build(PipelineConfig, values, "")
    except UsageError as error:
        raise UsageError(f"{path}: not of this version ({str(error).splitlines()[0]}); {WAY_OUT}") from None


def read_stages(run: RunDirectory) -> dict[str, Any]:
    """Return what a run makes, by stage in the order of its graph; raise UsageError when that cannot be read."""
    try:
        stages = read_state(run.identity, VERSION, WAY_OUT).get("stages")
    except FileNotFoundError:
        raise UsageError(f"{run.identity}: missing; {WAY_OUT}") from None
    if not isinstance(stages, dict):
        raise UsageError(f"{run.identity}: names no stages; {WAY_OUT}")
    return stages


def read_jobs(run: RunDirectory) -> dict[str, str]:
    """Return the job id of every stage of a run that was ever submitted to Slurm."""
    try:
        jobs = json.loads(run.jobs.read_text(encoding="utf-8"))
        return {stage: str(job) for stage, job in jobs.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{run.jobs}: not readable ({error}); delete it, and end its jobs with `scancel`") from None


def signs_of_life(log: Path) -> Path:
    """Return the folder in which the ranks of an attempt show that they get on, beside the attempt's log."""
    return log.with_suffix(".ranks")


def own_spec(log: Path) -> Path:
    """Return the work order that an attempt of a job has to itself, beside its log."""
    return log.with_suffix(".spec.json")


def own_outcome(log: Path) -> Path:
    """Return what an attempt of a job leaves, beside its log."""
    return log.with_suffix(".outcome.json")


def link_stage(run: RunDirectory, home: RunDirectory, stage: str) -> None:
    """Let a run show the work order and logs that another run holds for a stage which both share."""
    for folder in ("stages", "logs"):
        target, link = home.path / folder / stage, run.path / folder / stage
        target.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(os.path.relpath(target, link.parent))


def runs_in(root: Path) -> list[RunDirectory]:
    """Return the runs below a root, by name."""
    paths = sorted((root.resolve() / "runs").glob("*/config.yaml"))
    return [RunDirectory(root.resolve(), path.parent.name) for path in paths if not path.parent.is_symlink()]


def _latest(root: Path) -> str | None:
    """Return the run that the link names or, in a store that was copied without its links, the one started last."""
    link = root.resolve() / "runs" / LATEST
    if link.is_symlink():
        return link.readlink().name
    started = {run.name: last_holder(run.lease, dead_too=True) for run in runs_in(root)}
    since = {name: str(who["since"]) for name, who in started.items() if who and name != LATEST}
    return max(since, key=lambda name: since[name], default=None)


def find_run(root: Path, name: str) -> RunDirectory:
    """Return an existing run by name, or the latest; raise UsageError with the nearest name otherwise."""
    runs = root.resolve() / "runs"
    known = [run.name for run in runs_in(root)]
    if name == LATEST:
        name = _latest(root) or name
    if name not in known:
        hint = did_you_mean(name, known) or (f"; known: {', '.join(known)}" if known else "; start one: posttrain run")
        raise UsageError(f"run {name!r}: not in {runs}{hint}")
    return RunDirectory(root.resolve(), name)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _point(link: Path, target: str) -> None:
    """Make a symbolic link point at ``target``, in one step."""
    if link.is_symlink() and link.readlink().name == target:
        return
    if link.is_dir() and not link.is_symlink():
        print(f"warning: {link} is a folder and stays; delete it to have it name the latest again", file=sys.stderr)
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
