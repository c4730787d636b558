"""A store on another file system: finished artifacts by URL, their files by what they hold.

    <url>/files/<sha256>             the bytes of a file, whatever artifacts it belongs to
    <url>/artifacts/<name>.json      an artifact's manifest as it was committed; written last

A URL is one of Arrow (``s3://``, ``gs://``, ``abfs://``, ``file://``, a folder) or of fsspec (``sftp://``, …).
Objects appear whole or not at all: object stores show them once they are closed, elsewhere they are renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.stage.errors import PosttrainError, UsageError, did_you_mean

_CHUNK_BYTES = 1 << 22
_APPEARS_WHOLE = ("s3", "gcs", "abfs")
"""File systems of Arrow on which an object appears when it is closed."""
_WORDS = {
    "ACCESS_DENIED": "access denied",
    "INVALID_ACCESS_KEY_ID": "the access key is not known there",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong",
    "NO_SUCH_BUCKET": "no such bucket",
    "NETWORK_CONNECTION": "no connection",
}
"""What object stores' codes mean."""


class RemoteStore:
    """The artifacts at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._told():
            self._fs, self._path = _open(url)
            self._whole = self._fs.type_name in _APPEARS_WHOLE

    def names(self) -> list[str]:
        """Return the names of the artifacts there."""
        from pyarrow import fs

        with self._told():
            found = self._fs.get_file_info(fs.FileSelector(f"{self._path}/artifacts", allow_not_found=True))
        return sorted(info.base_name.removesuffix(".json") for info in found if info.base_name.endswith(".json"))

    def manifest(self, name: str) -> str | None:
        """Return the text of an artifact's manifest, or None when it is not there."""
        place = self._manifest(name)
        if self._size(place) is None:
            return None
        with self._told(), self._fs.open_input_stream(place) as stream:
            return bytes(stream.read()).decode()

    def put_manifest(self, name: str, text: str) -> None:
        """Write an artifact's manifest, which makes it one; its files are there."""
        with self._told(), self._writing(self._manifest(name)) as stream:
            stream.write(text.encode())

    def has(self, sha256: str, size: int, read: bool = False) -> bool:
        """Return whether the bytes of a file are there: in their size or, with ``read``, with their hash."""
        place = self._file(sha256)
        if self._size(place) != size:
            return False
        return not read or self._hash_of(place) == sha256

    def put(self, path: Path, sha256: str) -> None:
        """Send a file; raises UsageError when it is not what its manifest says."""
        digest = hashlib.sha256()
        with self._told(), self._writing(self._file(sha256)) as stream, path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                stream.write(chunk)
            if digest.hexdigest() != sha256:
                raise UsageError(f"{path}: SHA-256 is {digest.hexdigest()}, recorded {sha256}; restore it from a copy")

    def get(self, sha256: str, size: int, path: Path) -> None:
        """Fetch the bytes of a file; raises UsageError when they are not there, or not as recorded."""
        place = self._file(sha256)
        if self._size(place) is None:
            raise UsageError(f"{self.url}/files/{sha256}: missing; push the artifact again")
        digest = hashlib.sha256()
        with self._told(), self._fs.open_input_stream(place) as stream, path.open("wb") as file:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            path.unlink()
            raise UsageError(f"{self.url}/files/{sha256}: damaged; `posttrain push --verify` sends it again")

    def _manifest(self, name: str) -> str:
        return f"{self._path}/artifacts/{name}.json"

    def _file(self, sha256: str) -> str:
        return f"{self._path}/files/{sha256}"

    def _size(self, place: str) -> int | None:
        from pyarrow import fs

        with self._told():
            info = self._fs.get_file_info(place)
        return int(info.size) if info.type is fs.FileType.File else None

    def _hash_of(self, place: str) -> str:
        digest = hashlib.sha256()
        with self._told(), self._fs.open_input_stream(place) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def _writing(self, place: str) -> Iterator[BinaryIO]:
        """Open an object that is to appear whole; one that was written in part is removed."""
        at = place if self._whole else f"{place}.{os.getpid()}.part"
        if not self._whole:
            self._fs.create_dir(place.rpartition("/")[0], recursive=True)
        stream = self._fs.open_output_stream(at)
        try:
            yield stream
            stream.close()
        except BaseException:
            stream.close()
            self._fs.delete_file(at)
            raise
        if not self._whole:
            self._fs.move(at, place)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what the file system says in one line."""
        try:
            yield
        except PosttrainError:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(f"{self.url}: {_reason(error)}") from None


def find_remote(store: RemoteStore, text: str) -> str:
    """Return the name of the artifact at a URL that a name, a stage or the start of a name or key means."""
    if not (names := store.names()):
        raise UsageError(f"{store.url}: holds no artifact; check the bucket and the folder, or push some there")
    of_stage = [name for name in names if name.rpartition("-")[0] == text]
    found = [text] if text in names else of_stage
    found = found or [name for name in names if name.startswith(text) or name.rpartition("-")[2].startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"artifact {text!r}: could be {', '.join(found)}; give more of the name")
    hint = did_you_mean(text, [*names, *(name.rpartition("-")[0] for name in names)])
    raise UsageError(f"artifact {text!r}: not in {store.url}{hint or f'; {len(names)} others are'}")


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path on it."""
    from pyarrow import ArrowInvalid, fs

    if "://" not in url:
        return fs.LocalFileSystem(), str(Path(url).absolute())
    try:
        system, path = fs.FileSystem.from_uri(url)
    except ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        import fsspec

        found, path = fsspec.core.url_to_fs(url)
        system = fs.PyFileSystem(fs.FSSpecHandler(found))
    return system, path.rstrip("/")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    known = next((words for code, words in _WORDS.items() if code in text), None)
    fix = "check the URL, the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE …) and, for your own server, AWS_ENDPOINT_URL"
    return f"{known or text[:300]}; {fix}"


def as_manifest(text: str, where: str) -> dict[str, Any]:
    """Return a manifest's values; raise UsageError when the text is none."""
    try:
        raw: dict[str, Any] = json.loads(text)
        return {"digest": raw["digest"], "files": raw["files"], "parents": raw["parents"], "kind": raw["kind"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{where}: not a manifest ({error}); push the artifact again") from None
