"""Files that survive a crash: hashing, fsync, and directories that appear whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from posttrain.stage import heartbeat
from posttrain.stage.errors import UsageError

_CHUNK_BYTES = 1 << 20
_HASH_THREADS = 8


def may_write(folder: Path) -> bool:
    """Return whether a folder may be written to, or made."""
    return os.access(next(place for place in (folder, *folder.parents) if place.exists()), os.W_OK | os.X_OK)


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
    """Return all files below a directory, those behind links to folders too, sorted by their relative POSIX path.

    A link that leads back to a folder above it is not followed.
    """
    found: list[Path] = []

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> None:
        stat = folder.stat()
        if (here := (stat.st_dev, stat.st_ino)) in above:
            return
        for path in folder.iterdir():
            if path.is_dir():
                walk(path, above | {here})
            elif path.is_file():
                found.append(path)

    if directory.is_dir():
        walk(directory, frozenset())
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


def stamp(path: Path) -> list[int]:
    """Return what changes whenever a file is replaced or written: its inode, its size and its time of change.

    Unlike the time of writing, no program can set the last one back.
    """
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_ctime_ns]


def sha256_files(paths: list[Path]) -> list[str]:
    """Return the SHA-256 of each file, several read at once."""
    with ThreadPoolExecutor(_HASH_THREADS) as pool:  # hashlib releases the interpreter lock
        return list(pool.map(sha256_file, paths))


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
    paths = files_under(directory)
    return {
        path.relative_to(directory).as_posix(): {"sha256": digest, "bytes": path.stat().st_size}
        for path, digest in zip(paths, sha256_files(paths), strict=True)
    }


def contents_digest(path: Path, digest_of_file: Callable[[Path], str]) -> str:
    """Return ``digest_of_file`` of a file, or one digest of names and digests of all files of a folder or a pattern."""
    if is_pattern(path):
        return _digest_of_files(*matching(path), digest_of_file)
    path = located(path)
    return _digest_of_files(path, files_under(path), digest_of_file) if path.is_dir() else digest_of_file(path)


def _digest_of_files(folder: Path, files: list[Path], digest_of_file: Callable[[Path], str]) -> str:
    return sha256_text(canonical_json({file.relative_to(folder).as_posix(): digest_of_file(file) for file in files}))


def size_problems(directory: Path, expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line per listed file that is missing or has not its recorded size."""
    problems = []
    for name, entry in expected.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, recorded {entry['bytes']}")
    return problems


def file_problems(directory: Path, expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line per listed file that is missing or differs from its recorded size or hash."""
    problems = []
    for name, entry in expected.items():
        path = directory / name
        if wrong := size_problems(directory, {name: entry}):
            problems += wrong
        elif (actual := sha256_file(path)) != entry["sha256"]:
            problems.append(f"{path}: SHA-256 is {actual}, recorded {entry['sha256']}")
    return problems


def read_state(path: Path, newest: int, way_out: str) -> dict[str, Any]:
    """Return the JSON object of a file that a program of ours wrote, without the version that it was written in.

    Raises FileNotFoundError when there is none, and UsageError with the way out when it is torn, something else, or of
    a version after ``newest``. One that states no version is of the first.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError) as error:
        raise UsageError(f"{path}: not readable ({error}); {way_out}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: holds no JSON object; {way_out}")
    version = raw.pop("version", 1)
    if not isinstance(version, int) or version > newest:
        raise UsageError(f"{path}: version {version}, but this posttrain knows {newest}; use a newer posttrain for it")
    return raw


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
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write indented JSON as `write_text_atomic` does."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def follow_umask(directory: Path) -> None:
    """Give everything below a directory that was just made the modes that the umask gives: safetensors writes 0600."""
    mode = directory.stat().st_mode & 0o7777
    for path in directory.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


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
