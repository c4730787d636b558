"""From a stage whose inputs are made to its work order: key, directories and parents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.code import code_digest, code_parts
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.graph.keys import FileHashes, key_parts
from posttrain.pipeline.graph.revisions import Revisions
from posttrain.pipeline.runs.explained import write_parts
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.artifact import Manifest, Parent, artifact_name, is_artifact, is_free, read_manifest
from posttrain.stage.files import canonical_json, sha256_text
from posttrain.stage.record import find_records, read_record, records_of
from posttrain.stage.schema import to_dict
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.whole import require_sizes

ACCEPT = "accept"
"""The kind of record that lets an artifact of older code stand for what the present code would make."""


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

    def __init__(
        self,
        config: PipelineConfig,
        run: RunDirectory,
        distributed: Callable[[Stage], Distributed],
        frozen: bool = False,
    ) -> None:
        """``distributed`` is what a launcher makes of how a stage is to be spread over processes.

        ``frozen`` takes names on the Hub at the commits of the last time.
        """
        self._config = config
        self._run = run
        self._distributed = distributed
        self._files = FileHashes(run.root / "cache" / "hashes.json")
        self._revisions = Revisions(run.root / "cache" / "revisions.json", frozen)
        self._unexplained: dict[str, tuple[Stage, dict[str, Made], str]] = {}

    def save(self) -> None:
        """Remember the hashes of outside files, the commits of names on the Hub, and what keys were made of."""
        self._files.save()
        self._revisions.save()
        for key, (stage, made, code) in self._unexplained.items():
            write_parts(self._run.root, key, self.parts(stage, made, code), code_parts(stage.type.module))
        self._unexplained.clear()

    def key(self, stage: Stage, made: dict[str, Made], code: str) -> str:
        """Return the key that a stage has with some code; ``made`` holds the artifact of each stage that it needs."""
        return sha256_text(canonical_json(self.parts(stage, made, code)))

    def parts(self, stage: Stage, made: dict[str, Made], code: str) -> dict[str, Any]:
        """Return what `key` is the hash of; of inputs that are not made, nothing."""
        digests = {name: made[parent].manifest.digest for name, parent in stage.inputs.items() if parent in made}
        pinned = dataclasses.replace(stage, config=self._revisions.pinned(stage.config))
        return key_parts(pinned, digests, code, stage.seed, self._files)

    def spec(self, stage: Stage, made: dict[str, Made]) -> StageSpec:
        """Return the work order of a stage; ``made`` holds the artifact of each stage that it needs."""
        inputs = {name: made[parent] for name, parent in stage.inputs.items()}
        code = code_digest(stage.type.module)
        key = self.key(stage, made, code)
        self._unexplained[key] = (stage, made, code)
        tracking = self._config.tracking
        return StageSpec(
            stage=stage.name,
            run=stage.type.run,
            pipeline=self._run.name,
            key=key,
            code_digest=code,
            config=to_dict(self._revisions.pinned(stage.config)),
            inputs={name: str(parent.directory) for name, parent in inputs.items()},
            parents={name: parent.parent() for name, parent in inputs.items()},
            output=str(accepted(self._run.root, key) or _place(self._run.root / "artifacts", stage.name, key)),
            work=str(_place(self._run.root / "work", stage.name, key)),
            outcome=str(self._run.outcome(stage.name)),
            seed=stage.seed,
            distributed=self._distributed(stage),
            tracking=Tracking(wandb=tracking.wandb, project=tracking.project, group=self._run.name),
            lease_wait_seconds=self._config.launcher.lease_wait_seconds,
        )


def _place(folder: Path, stage: str, key: str) -> Path:
    """Return where a stage's artifact or work is, or will be: a stage that was renamed finds that of its old name."""
    own = folder / artifact_name(stage, key)
    return own if own.exists() else next(iter(sorted(folder.glob(f"[!.]*-{key[:16]}"))), own)


def accepted(root: Path, key: str) -> Path | None:
    """Return the artifact of older code that `posttrain accept` lets stand for a key."""
    for path in find_records(root, ACCEPT, key):
        directory: Path = root / "artifacts" / read_record(path)["artifact"]
        if is_artifact(directory) and _accepts(directory, read_manifest(directory), key):
            return directory
    return None


def committed(spec: StageSpec) -> Made | None:
    """Return the artifact that a work order asks for, if it is there already.

    Raises UsageError when it is there but damaged, or a record that lets another artifact stand for it is.
    """
    directory = Path(spec.output)
    if is_free(directory):
        return None
    manifest = require_sizes(directory)
    if manifest.key != spec.key and not _accepts(directory, manifest, spec.key):
        return None
    return Made(directory, manifest)


def _accepts(directory: Path, manifest: Manifest, key: str) -> bool:
    records = [read_record(path) for path in records_of(directory) if path.name.startswith(ACCEPT)]
    return any(record["key"] == key and record["digest"] == manifest.digest for record in records)
