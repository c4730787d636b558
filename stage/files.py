"""Files that survive a crash: hashing, fsync, and directories that appear whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from posttrain.stage import heartbeat

_CHUNK_BYTES = 1 << 20
_HASH_THREADS = 8


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            heartbeat.pulse()
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def files_under(directory: Path) -> list[Path]:
    """Return all files below a directory, sorted by their relative POSIX path."""
    return sorted((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.relative_to(directory).as_posix())


def located(path: Path | str) -> Path:
    """Return where a path that a person wrote points to: ``~`` is the home folder.

    Accented letters have two spellings in Unicode, and keyboards and disks differ in which they choose; where the one
    that was written is not there, the other is taken.
    """
    try:
        text = str(Path(path).expanduser())
    except RuntimeError:  # no such user
        text = str(path)
    spellings = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    return Path(next((spelling for spelling in spellings if os.path.lexists(spelling)), text))


def is_pattern(path: Path | str) -> bool:
    """Return whether a path names nothing by itself, but those files whose names match its ``*``, ``?`` or ``[…]``."""
    return glob.has_magic(str(path)) and not located(path).exists()


def matching(path: Path | str) -> tuple[Path, list[Path]]:
    """Return the folder where a pattern begins, and all files that match it, sorted by their path below that folder.

    ``**`` stands for any folders; hidden files match nothing.
    """
    parts = located(path).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    below = {found.relative_to(folder): found for found in folder.glob(str(Path(*parts[fixed:]))) if found.is_file()}
    visible = [path for path in below if not any(part.startswith(".") for part in path.parts)]
    return folder, [below[path] for path in sorted(visible, key=Path.as_posix)]


def hash_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Return ``{relative path: {"sha256": …, "bytes": …}}`` for every file below a directory."""
    paths = {path.relative_to(directory).as_posix(): path for path in files_under(directory)}
    with ThreadPoolExecutor(_HASH_THREADS) as pool:  # hashlib releases the interpreter lock
        hashes = list(pool.map(lambda name: sha256_file(paths[name]), paths))
    return {
        name: {"sha256": digest, "bytes": paths[name].stat().st_size}
        for name, digest in zip(paths, hashes, strict=True)
    }


def file_problems(directory: Path, expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line per listed file that is missing or differs from its recorded size or hash."""
    problems = []
    for name, entry in expected.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, recorded {entry['bytes']}")
        elif (actual := sha256_file(path)) != entry["sha256"]:
            problems.append(f"{path}: SHA-256 is {actual}, recorded {entry['sha256']}")
    return problems


def fsync_path(path: Path) -> None:
    """Flush a file or directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace a file's text such that a reader or a crash sees the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write indented JSON as `write_text_atomic` does."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def publish_directory(temporary: Path, final: Path) -> None:
    """Flush everything below ``temporary`` and rename it to ``final``, which must not exist or be empty.

    Until the rename returns, ``final`` does not exist; afterwards it holds every byte.
    """
    for path in files_under(temporary):
        fsync_path(path)
    for path in sorted((p for p in temporary.rglob("*") if p.is_dir()), reverse=True):
        fsync_path(path)
    fsync_path(temporary)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(final)
    fsync_path(final.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory tree; a missing one is fine.

    It is renamed away first, so that a crash half-way never leaves a partial tree under its own name.
    """
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name}.removing.{os.getpid()}")
    path.rename(doomed)
    shutil.rmtree(doomed)
