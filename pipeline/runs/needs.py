"""What the runs of a store need, and what is in it besides.

A run needs the artifacts that its work orders name, everything that these were made from, and the work of stages that
are not finished. The rest was superseded by other knobs, code or data, or left by a process that was killed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from posttrain.pipeline.runs.rundir import RunDirectory, runs_in
from posttrain.pipeline.runs.store import artifact_directories
from posttrain.stage.artifact import artifact_name, is_artifact, is_free, leftovers, read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.files import files_under
from posttrain.stage.lease import holder
from posttrain.stage.spec import StageSpec


@dataclasses.dataclass(frozen=True)
class Needless:
    """A folder or file that no run needs."""

    path: Path
    why: str
    bytes: int
    changed: float
    """When it was last written, in seconds since the epoch."""


def needed_by(runs: Iterable[RunDirectory]) -> set[str]:
    """Return the names of the artifacts and work folders that some runs need; an artifact's work has its name.

    Raises UsageError when a work order cannot be read: what it needs is not known.
    """
    needed: set[str] = set()
    for run in runs:
        for path in sorted((run.path / "stages").glob("*/spec.json")):
            spec = StageSpec.read(path)
            needed.add(Path(spec.work).name)
            for place in (spec.output, *spec.inputs.values()):
                needed |= lineage(Path(place))
    return needed


def lineage(directory: Path) -> set[str]:
    """Return the names of an artifact, made or not, and of all that it was made from.

    Raises UsageError when one of them is there but does not say what it was made from.
    """
    found: set[str] = set()
    waiting = [directory]
    while waiting:
        place = waiting.pop()
        if place.name in found:
            continue
        found.add(place.name)
        if not is_free(place):
            waiting += [place.parent / parent.name for parent in read_manifest(place).parents.values()]
    return found


def needless(root: Path, runs: Iterable[RunDirectory] | None = None) -> list[Needless]:
    """Return what is in a store that none of its runs, or of ``runs``, needs and nobody is working on; largest first.

    Raises UsageError when a work order cannot be read, or an artifact that says what it was made from.
    """
    root = root.resolve()
    needed = needed_by(runs_in(root) if runs is None else runs)
    found = [*_artifacts(root, needed), *_work(root, needed), *_torn(root)]
    return sorted(found, key=lambda one: (-one.bytes, one.path))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    return sum(file.lstat().st_size for file in (files_under(path) if path.is_dir() else [path]))


def in_use(root: Path, name: str) -> bool:
    """Return whether a process is making the artifact of this name."""
    return holder(root / "work" / name / "lease") is not None


def _artifacts(root: Path, needed: set[str]) -> list[Needless]:
    """Return the artifacts that runs made and none needs; one that was put into the store by hand is its owner's."""
    found = []
    for directory in artifact_directories(root):
        if directory.name in needed or in_use(root, directory.name):
            continue
        manifest = read_manifest(directory)
        if directory.name == artifact_name(manifest.stage, manifest.key):
            found.append(_entry(directory, "an artifact that no run needs"))
    return found


def _work(root: Path, needed: set[str]) -> list[Needless]:
    found = []
    for work in sorted((root / "work").glob("[!.]*")):
        if in_use(root, work.name):
            continue
        if work.name not in needed:
            found.append(_entry(work, "work that no run goes on with"))
        elif is_artifact(root / "artifacts" / work.name):
            found += [_entry(path, "left by a stage that is committed") for path in leftovers(work)]
    return found


def _torn(root: Path) -> list[Needless]:
    """Return what was about to be an artifact, or to be removed, when a process was killed."""
    found = []
    for path in sorted((root / "artifacts").glob(".*")):
        name, _, rest = path.name.removeprefix(".").partition(".")
        if rest.partition(".")[0] in ("incomplete", "removing") and not in_use(root, name):
            found.append(_entry(path, "left by a process that was killed"))
    return found


def _entry(path: Path, why: str) -> Needless:
    newest = max((file.lstat().st_mtime for file in files_under(path)), default=path.lstat().st_mtime)
    return Needless(path, why, size_of(path), newest)


def descendants(root: Path, name: str) -> list[str]:
    """Return the names of the artifacts that were made from the one of this name."""
    found = []
    for directory in artifact_directories(root):
        try:
            parents = read_manifest(directory).parents.values()
        except UsageError:
            continue
        if any(parent.name == name for parent in parents):
            found.append(directory.name)
    return found
