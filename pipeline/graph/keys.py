"""Artifact keys: what an artifact depends on, as one SHA-256."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from posttrain.pipeline.graph.graph import Stage
from posttrain.stage.errors import UsageError
from posttrain.stage.files import (
    canonical_json,
    files_under,
    is_pattern,
    located,
    matching,
    sha256_file,
    sha256_text,
    write_json_atomic,
)
from posttrain.stage.schema import external_paths, key_values, to_dict

LARGE_BYTES = 10**9
"""Outside files from this size on are announced while they are hashed: it takes seconds."""


def stage_key(stage: Stage, parent_digests: dict[str, str], code: str, seed: int, files: FileHashes) -> str:
    """Return the key of a stage's artifact.

    ``parent_digests`` maps input names to content digests, ``code`` is the digest of the code that the stage runs.
    """
    parts = {
        "run": stage.type.run,
        "config": key_values(stage.config, files.digest),
        "parents": parent_digests,
        "code": code,
        "seed": seed,
    }
    return sha256_text(canonical_json(parts))


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
    """Content hashes of outside files, remembered by path, size and modification time."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known = _read(cache)
        self._changed = False

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes, or of the names and hashes of all files of a folder or a pattern."""
        if is_pattern(path):
            return self._files(*matching(path))
        path = located(path)
        return self._files(path, files_under(path)) if path.is_dir() else self._file(path)

    def _files(self, folder: Path, files: list[Path]) -> str:
        return sha256_text(canonical_json({f.relative_to(folder).as_posix(): self._file(f) for f in files}))

    def save(self) -> None:
        """Write the cache where something new was hashed; another pipeline's additions may be lost, never wrong."""
        if self._changed:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._cache, self._known)
            self._changed = False

    def _file(self, path: Path) -> str:
        stat = path.stat()
        name = str(path.resolve())
        known = self._known.get(name)
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        if stat.st_size >= LARGE_BYTES:
            print(f"hashing {path} ({stat.st_size / 1e9:.1f} GB), once", file=sys.stderr, flush=True)
        digest = sha256_file(path)
        self._known[name] = [stat.st_size, stat.st_mtime_ns, digest]
        self._changed = True
        return digest


def _read(cache: Path) -> dict[str, list[Any]]:
    try:
        known: dict[str, list[Any]] = json.loads(cache.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known
