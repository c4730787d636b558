"""`posttrain push` and `pull`: finished artifacts to and from a store at a URL, with all that they were made from."""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.runs.remote import RemoteStore, as_manifest, find_remote
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.store import artifact_directories, find_artifact
from posttrain.pipeline.runs.variants import Point
from posttrain.stage.artifact import MANIFEST, content_digest, is_free, read_manifest, remember_whole
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.files import (
    files_under,
    follow_umask,
    publish_directory,
    sha256_file,
    stamp,
    write_text_atomic,
)
from posttrain.stage.lease import Lease
from posttrain.stage.spec import Distributed
from posttrain.stage.whole import require_whole
from posttrain.stage.wording import size

TRANSFER = "transfer"
"""What the lease of an artifact says that is being pulled."""


def push(root: Path, url: str, names: list[str], verify: bool) -> int:
    """Send artifacts with all that they were made from, parents first; what is there is not sent again.

    Without names, all are sent. ``verify`` reads what is there, and sends again what is not as recorded.
    """
    remote = RemoteStore(url)
    wanted = [find_artifact(root, name).resolve() for name in names] or artifact_directories(root.resolve())
    if not wanted:
        raise UsageError(f"{root}: holds no artifact; give --root DIR")
    for directory in _with_parents(wanted):
        _push_one(remote, directory, verify)
    return EXIT_DONE


def pull(root: Path, url: str, names: list[str]) -> int:
    """Fetch artifacts by their names, with all that they were made from."""
    remote = RemoteStore(url)
    for name in _remote_order(remote, [find_remote(remote, name) for name in names]):
        _pull_one(remote, root.resolve(), name)
    return EXIT_DONE


def pull_made(point: Point) -> None:
    """Fetch what a run would make and its ``remote`` store has, as far as that can be known before anything is made."""
    if point.config.remote is None:
        return
    remote, root = RemoteStore(point.config.remote), point.run.root
    by_key = {name.rpartition("-")[2]: name for name in remote.names()}
    resolver = Resolver(point.config, point.run, lambda stage: Distributed())
    made: dict[str, Made] = {}
    for stage in point.stages:
        if not {*stage.inputs.values()} <= {*made}:
            continue
        spec = resolver.spec(stage, made)
        found = committed(spec)
        if found is None and (name := by_key.get(spec.key[:16])) is not None:
            for each in _remote_order(remote, [name]):
                _pull_one(remote, root, each)
            found = committed(resolver.spec(stage, made))
        if found is not None:
            made[stage.name] = found
    resolver.save()


def _push_one(remote: RemoteStore, directory: Path, verify: bool) -> None:
    manifest = require_whole(directory)
    there = remote.manifest(directory.name)
    if (
        there is not None
        and (digest := as_manifest(there, f"{remote.url}: {directory.name}")["digest"]) != manifest.digest
    ):
        raise UsageError(
            f"{remote.url}: {directory.name} is there with digest {digest[:12]}, here with {manifest.digest[:12]}; "
            "nothing there is replaced"
        )
    sent = count = 0
    for name, entry in manifest.files.items():
        if not remote.has(entry["sha256"], entry["bytes"], verify):
            remote.put(directory / name, entry["sha256"])
            sent, count = sent + entry["bytes"], count + 1
    if there is None:
        remote.put_manifest(directory.name, (directory / MANIFEST).read_text(encoding="utf-8"))
    print(f"{directory.name}: sent {count} of {len(manifest.files)} files, {size(sent)}", flush=True)


def _pull_one(remote: RemoteStore, root: Path, name: str) -> None:
    """Fetch one artifact; files that an interrupted pull has fetched are not fetched again."""
    where = f"{remote.url}: {name}"
    text = remote.manifest(name)
    assert text is not None
    wanted = as_manifest(text, where)
    if content_digest(wanted["kind"], wanted["files"]) != wanted["digest"]:
        raise UsageError(f"{where}: the recorded digest does not match the recorded files; push it again")
    final, work = root / "artifacts" / name, root / "work" / name
    with Lease(work / "lease", TRANSFER, None):
        if not is_free(final):
            if (digest := read_manifest(final).digest) != wanted["digest"]:
                raise UsageError(
                    f"{final}: has digest {digest[:12]}, that at {where} {wanted['digest'][:12]}; none is replaced"
                )
            print(f"{name}: here already", flush=True)
            return
        temporary = final.with_name(f".{name}.incomplete")
        fetched = sum(_fetch(remote, temporary, file, entry) for file, entry in wanted["files"].items())
        for path in files_under(temporary):
            if path.relative_to(temporary).as_posix() not in wanted["files"]:
                path.unlink()  # of a stage that was killed
        write_text_atomic(temporary / MANIFEST, text)
        read_manifest(temporary)
        follow_umask(temporary)
        stamps = {file: stamp(temporary / file) for file in wanted["files"]}
        publish_directory(temporary, final)
        remember_whole(final, wanted["digest"], stamps)
    print(f"{name}: fetched {size(fetched)}", flush=True)


def _fetch(remote: RemoteStore, temporary: Path, file: str, entry: dict[str, int | str]) -> int:
    path = temporary / file
    if not path.resolve().is_relative_to(temporary.resolve()):
        raise UsageError(f"{remote.url}: names a file {file!r} outside of its artifact")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]:
        return 0
    remote.get(str(entry["sha256"]), int(entry["bytes"]), path)
    return int(entry["bytes"])


def _with_parents(directories: list[Path]) -> list[Path]:
    """Return artifacts with all that they were made from, parents before children; raise UsageError for one missing."""
    found: dict[Path, None] = {}

    def add(directory: Path) -> None:
        if directory in found:
            return
        for name, parent in read_manifest(directory).parents.items():
            place = directory.parent / parent.name
            if is_free(place):
                raise UsageError(f"{place}: missing, but {directory.name} was made from it as {name}; nothing was sent")
            add(place)
        found[directory] = None

    for directory in directories:
        add(directory)
    return list(found)


def _remote_order(remote: RemoteStore, names: list[str]) -> list[str]:
    """Return artifacts at a URL with all that they were made from, parents before children."""
    found: dict[str, None] = {}

    def add(name: str, child: str) -> None:
        if name in found:
            return
        text = remote.manifest(name)
        if text is None:
            raise UsageError(f"{remote.url}: {name} is missing, but {child} was made from it; push it there")
        for parent in as_manifest(text, f"{remote.url}: {name}")["parents"].values():
            add(parent["name"], name)
        found[name] = None

    for name in names:
        add(name, "")
    return list(found)
