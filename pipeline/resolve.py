"""From a stage whose inputs are made to its work order: key, directories and parents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from posttrain.pipeline.code import code_digest
from posttrain.pipeline.config import PipelineConfig
from posttrain.pipeline.graph import Stage
from posttrain.pipeline.keys import FileHashes, stage_key
from posttrain.pipeline.launch import Launcher
from posttrain.pipeline.rundir import RunDirectory
from posttrain.stage.artifact import Manifest, Parent, artifact_name, read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import to_dict
from posttrain.stage.spec import StageSpec, Tracking


@dataclasses.dataclass(frozen=True)
class Made:
    """A committed artifact."""

    directory: Path
    manifest: Manifest

    def parent(self) -> Parent:
        """Return what a child's manifest says of it."""
        return Parent(self.manifest.kind, self.manifest.digest, self.directory.name)


class Resolver:
    """Gives stages of one run their work orders."""

    def __init__(self, config: PipelineConfig, run: RunDirectory, launcher: Launcher) -> None:
        self._config = config
        self._run = run
        self._launcher = launcher
        self.files = FileHashes(run.root / "cache" / "hashes.json")

    def spec(self, stage: Stage, made: dict[str, Made]) -> StageSpec:
        """Return the work order of a stage; ``made`` holds the artifact of each stage that it needs."""
        inputs = {name: made[parent] for name, parent in stage.inputs.items()}
        digests = {name: parent.manifest.digest for name, parent in inputs.items()}
        code = code_digest(stage.type.module)
        key = stage_key(stage, digests, code, self._config.seed, self.files)
        directory = artifact_name(stage.name, key)
        tracking = self._config.tracking
        return StageSpec(
            stage=stage.name,
            run=stage.type.run,
            pipeline=self._run.name,
            key=key,
            code_digest=code,
            config=to_dict(stage.config),
            inputs={name: str(parent.directory) for name, parent in inputs.items()},
            parents={name: parent.parent() for name, parent in inputs.items()},
            output=str(self._run.root / "artifacts" / directory),
            work=str(self._run.root / "work" / directory),
            outcome=str(self._run.outcome(stage.name)),
            seed=self._config.seed,
            distributed=self._launcher.distributed(stage),
            tracking=Tracking(wandb=tracking.wandb, project=tracking.project, group=self._run.name),
            lease_wait_seconds=self._config.launcher.lease_wait_seconds,
        )


def committed(spec: StageSpec) -> Made | None:
    """Return the artifact that a work order asks for, if it is there already."""
    directory = Path(spec.output)
    try:
        manifest = read_manifest(directory)
    except UsageError:
        return None
    return Made(directory, manifest) if manifest.key == spec.key else None
