"""Artifact keys: what an artifact depends on, as one SHA-256."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from posttrain.pipeline.graph.graph import Stage
from posttrain.stage.errors import UsageError
from posttrain.stage.files import (
    canonical_json,
    contents_digest,
    is_pattern,
    located,
    matching,
    read_state,
    sha256_file,
    sha256_text,
    stamp,
    write_json_atomic,
)
from posttrain.stage.schema import external_paths, key_values, to_dict

VERSION = 2
"""Of the form in which hashes are remembered."""
LARGE_BYTES = 10**9
"""Outside files from this size on are announced while they are hashed: it takes seconds."""


def stage_key(stage: Stage, parent_digests: dict[str, str], code: str, seed: int, files: FileHashes) -> str:
    """Return the key of a stage's artifact.

    ``parent_digests`` maps input names to content digests, ``code`` is the digest of the code that the stage runs.
    """
    return sha256_text(canonical_json(key_parts(stage, parent_digests, code, seed, files)))


def key_parts(stage: Stage, parent_digests: dict[str, str], code: str, seed: int, files: FileHashes) -> dict[str, Any]:
    """Return what the key of a stage's artifact is the hash of."""
    return {
        "run": stage.type.run,
        "config": key_values(stage.config, files.digest),
        "parents": parent_digests,
        "code": code,
        "seed": seed,
    }


def check_external_paths(stages: list[Stage]) -> None:
    """Raise UsageError that names the knob of every outside file, folder or module that does not exist."""
    problems = [
        f"{stage.label(_key_of(to_dict(stage.config), str(path)))}: {path}: no such file, folder or module; "
        "mend the path"
        for stage in stages
        for path in external_paths(stage.config)
        if not (matching(path)[1] if is_pattern(path) else located(path).exists())
    ]
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))


def _key_of(values: Any, text: str) -> str:
    """Return the dotted key under which the path ``text`` stands in nested values, or an empty string."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if isinstance(value, str) and str(Path(value)) == text:
            return str(key)
        if below := _key_of(value, text):
            return f"{key}.{below}"
    return ""


class FileHashes:
    """Content hashes of outside files, remembered by path, inode, size and time of change."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known = _read(cache)
        self._changed = False

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes, or of the names and hashes of all files of a folder or a pattern."""
        return contents_digest(path, self._file)

    def save(self) -> None:
        """Write the cache where something new was hashed; another pipeline's additions may be lost, never wrong."""
        if self._changed:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._cache, {"version": VERSION, "files": self._known})
            self._changed = False

    def _file(self, path: Path) -> str:
        now = stamp(path)
        name = str(path.resolve())
        known = self._known.get(name)
        if known is not None and known[:-1] == now:
            return str(known[-1])
        if (size := path.stat().st_size) >= LARGE_BYTES:
            print(f"hashing {path} ({size / 1e9:.1f} GB), once", file=sys.stderr, flush=True)
        digest = sha256_file(path)
        self._known[name] = [*now, digest]
        self._changed = True
        return digest


def _read(cache: Path) -> dict[str, list[Any]]:
    try:
        known = read_state(cache, VERSION, "").get("files")
    except (OSError, UsageError):
        return {}
    well = isinstance(known, dict) and all(isinstance(entry, list) and entry for entry in known.values())
    return known if isinstance(known, dict) and well else {}
