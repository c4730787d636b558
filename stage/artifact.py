"""Artifacts: immutable directories with a manifest that says what they are, what they came from and what they hold.

    <root>/artifacts/<stage>-<key16>/     manifest.json + files          committed by rename, never changed again
    <root>/work/<stage>-<key16>/          lease, checkpoints, metrics    what an unfinished stage needs to go on

A directory without a readable manifest is not an artifact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import (
    canonical_json,
    file_problems,
    files_under,
    follow_umask,
    hash_files,
    publish_directory,
    read_state,
    sha256_text,
    stamp,
    write_json_atomic,
)

MANIFEST = "manifest.json"
VERSION = 1
"""Of the manifest's form."""
RESTORE = "restore it from a copy, or delete the folder to have it made again"
MEMORY_VERSION = 1
LOGS = "logs"
"""Folder of an artifact whose files differ from run to run (timings): verified, but outside the digest."""


@dataclasses.dataclass(frozen=True)
class Parent:
    """One input of the stage: the artifact's kind, content digest and directory name."""

    kind: str
    digest: str
    name: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The record of one artifact; `digest` is over the contents alone, `key` over everything that led to them."""

    kind: str
    stage: str
    run: str
    key: str
    digest: str
    files: dict[str, dict[str, Any]]
    parents: dict[str, Parent]
    config: dict[str, Any]
    code_digest: str
    seed: int
    metrics: dict[str, Any]
    headline: str
    tokens: int
    wall_seconds: float
    created: str
    packages: dict[str, str]
    hardware: dict[str, Any]
    licenses: list[str]
    facts: dict[str, Any]


def artifact_name(stage: str, key: str) -> str:
    """Return the directory name of an artifact: the stage's name and the first 16 digits of its key."""
    return f"{stage}-{key[:16]}"


def content_digest(kind: str, files: dict[str, dict[str, Any]]) -> str:
    """Return the SHA-256 over the kind and the hashes of all files outside `LOGS`."""
    hashes = {name: entry["sha256"] for name, entry in files.items() if not name.startswith(f"{LOGS}/")}
    return sha256_text(canonical_json({"kind": kind, "files": hashes}))


def read_manifest(directory: Path) -> Manifest:
    """Return an artifact's manifest.

    Raises UsageError when the directory is not an artifact, or its manifest cannot be read.
    """
    path = directory / MANIFEST
    try:
        raw = read_state(path, VERSION, RESTORE)
        raw["parents"] = {name: Parent(**parent) for name, parent in raw["parents"].items()}
        return Manifest(**raw)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{directory}: not an artifact (no {MANIFEST}); give the directory of a committed one"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a valid manifest ({error}); {RESTORE}") from None


def is_artifact(directory: Path) -> bool:
    """Return whether a directory is a committed artifact with a readable manifest."""
    try:
        read_manifest(directory)
    except UsageError:
        return False
    return True


def is_free(directory: Path) -> bool:
    """Return whether an artifact can be committed as ``directory``: nothing is there, or an empty folder."""
    if not directory.is_dir():
        return not directory.exists() and not directory.is_symlink()
    return not any(directory.iterdir())


def commit(temporary: Path, final: Path, manifest: Manifest) -> Manifest:
    """Hash what ``temporary`` holds, complete the manifest, and publish it all as ``final``.

    Returns the manifest as written. Raises PosttrainError when the stage left nothing to commit, and UsageError when
    the place is taken.
    """
    if not files_under(temporary):
        raise PosttrainError(f"stage {manifest.stage} wrote no file into {temporary}; nothing to commit")
    if not is_free(final):
        raise UsageError(f"{final}: is there already, and nothing in it is replaced; give another output, or remove it")
    follow_umask(temporary)
    stamps = {path.relative_to(temporary).as_posix(): stamp(path) for path in files_under(temporary)}
    files = hash_files(temporary)
    complete = dataclasses.replace(manifest, files=files, digest=content_digest(manifest.kind, files))
    write_json_atomic(temporary / MANIFEST, {**dataclasses.asdict(complete), "version": VERSION})
    publish_directory(temporary, final)
    remember_whole(final, complete.digest, stamps)
    return complete


def trusts_remote_code(directory: Path) -> bool:
    """Return whether the base stage, of this model or of the one that it was trained from, may run the model's code.

    A model's folder that is no artifact has no such stage, so it may not.
    """
    if not (directory / MANIFEST).is_file():
        return False
    manifest = read_manifest(directory)
    if "trust_remote_code" in manifest.facts:
        return bool(manifest.facts["trust_remote_code"])
    trained_from = [directory.parent / parent.name for parent in manifest.parents.values() if parent.kind == "model"]
    return any(is_artifact(parent) and trusts_remote_code(parent) for parent in trained_from)


def leftovers(work: Path) -> list[Path]:
    """Return what a committed stage needs no more: all its work but the lease and W&B's files, which may be unsent."""
    return [path for path in work.iterdir() if path.name not in {"lease", "wandb"}] if work.is_dir() else []


def clear_work(work: Path) -> None:
    """Drop the checkpoints and metrics of a committed stage."""
    for path in leftovers(work):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def memory_file(directory: Path) -> Path | None:
    """Return where a store remembers that an artifact of its was whole; None for an artifact outside a store."""
    place = directory.absolute()
    return place.parent.parent / "cache" / "whole" / f"{place.name}.json" if place.parent.name == "artifacts" else None


def remember_whole(directory: Path, digest: str, stamps: dict[str, list[int]]) -> None:
    """Remember that the files of an artifact were as recorded when they had these stamps (`posttrain.stage.whole`).

    Where the store cannot be written, nothing is remembered.
    """
    if (path := memory_file(directory)) is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, {"version": MEMORY_VERSION, "digest": digest, "stamps": stamps})


def verify(directory: Path) -> list[str]:
    """Return one line per file of an artifact that is missing, changed or not in its manifest."""
    manifest = read_manifest(directory)
    problems = file_problems(directory, manifest.files)
    known = {*manifest.files, MANIFEST}
    for path in files_under(directory):
        name = path.relative_to(directory).as_posix()
        if name not in known:
            problems.append(f"{path}: not in the manifest")
    if content_digest(manifest.kind, manifest.files) != manifest.digest:
        problems.append(f"{directory / MANIFEST}: the recorded digest does not match the recorded files")
    return problems
