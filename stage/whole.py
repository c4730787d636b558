"""Whether artifacts are whole: their sizes at every look, their hashes before what they hold is used.

    <root>/cache/whole/<artifact>.json    the stamps (inode, size, time of change) of its files when they were whole

A file is hashed again when its stamp is another, so that a finished pipeline is recognised at once, and a copied store
is read once. An artifact outside a store is hashed each time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain.stage.artifact import (
    MANIFEST,
    MEMORY_VERSION,
    RESTORE,
    Manifest,
    content_digest,
    memory_file,
    read_manifest,
    remember_whole,
)
from posttrain.stage.errors import UsageError
from posttrain.stage.files import read_state, sha256_files, size_problems, stamp

LARGE_BYTES = 10**9
"""From this size on it is said that an artifact is being hashed: it takes seconds."""


def require_sizes(directory: Path) -> Manifest:
    """Return an artifact's manifest; raise UsageError when it or a file is missing, or has another size."""
    if not (directory / MANIFEST).is_file():
        raise UsageError(f"{directory}: {MANIFEST} is missing; {RESTORE}")
    manifest = read_manifest(directory)
    _raise_first(size_problems(directory, manifest.files))
    return manifest


def require_whole(directory: Path) -> Manifest:
    """Return the manifest of an artifact that holds every byte as recorded.

    Raises UsageError that names the file otherwise, and the way out.
    """
    manifest = require_sizes(directory)
    if content_digest(manifest.kind, manifest.files) != manifest.digest:
        raise UsageError(f"{directory / MANIFEST}: the recorded digest does not match the recorded files; {RESTORE}")
    stamps = {name: stamp(directory / name) for name in manifest.files}
    known = _remembered(directory, manifest)
    unknown = [name for name in manifest.files if known.get(name) != stamps[name]]
    if not unknown:
        return manifest
    size = sum(manifest.files[name]["bytes"] for name in unknown)
    if size >= LARGE_BYTES:
        print(f"hashing {directory.name} ({size / 1e9:.1f} GB), once", file=sys.stderr, flush=True)
    hashes = dict(zip(unknown, sha256_files([directory / name for name in unknown]), strict=True))
    _raise_first(
        [
            f"{directory / name}: SHA-256 is {found}, recorded {manifest.files[name]['sha256']}"
            for name, found in hashes.items()
            if found != manifest.files[name]["sha256"]
        ]
    )
    remember_whole(directory, manifest.digest, stamps)
    return manifest


def _remembered(directory: Path, manifest: Manifest) -> dict[str, list[int]]:
    path = memory_file(directory)
    try:
        said = read_state(path, MEMORY_VERSION, "") if path is not None else {}
    except (OSError, UsageError):
        return {}
    stamps = said.get("stamps")
    return stamps if said.get("digest") == manifest.digest and isinstance(stamps, dict) else {}


def _raise_first(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(f"{problems[0]}{more}; {RESTORE}")
