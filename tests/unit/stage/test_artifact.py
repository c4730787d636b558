"""Verification finds every byte that is not as it was committed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import commit_artifact

from posttrain.stage.artifact import MANIFEST, commit, content_digest, is_artifact, read_manifest, verify
from posttrain.stage.errors import UsageError
from posttrain.stage.files import sha256_text


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = tmp_path / "data-0001"
    (directory / "logs").mkdir(parents=True)
    (directory / "rows.txt").write_text("rows")
    (directory / "logs" / "times.txt").write_text("times")
    return commit_artifact(directory, "dataset", "curate")


def edit(artifact: Path, **values: Any) -> None:
    path = artifact / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_was_committed_is_whole(artifact: Path) -> None:
    assert is_artifact(artifact)
    assert verify(artifact) == []


@pytest.mark.parametrize("values", [{"digest": "0" * 64}, {"kind": "model"}])
def test_a_digest_that_does_not_follow_from_kind_and_files_is_found(artifact: Path, values: dict[str, str]) -> None:
    edit(artifact, **values)
    assert verify(artifact) == [f"{artifact / MANIFEST}: the recorded digest does not match the recorded files"]


def test_a_file_that_was_changed_in_file_and_manifest_alike_is_found(artifact: Path) -> None:
    files = json.loads((artifact / MANIFEST).read_text())["files"]
    (artifact / "rows.txt").write_text("woes")
    files["rows.txt"]["sha256"] = sha256_text("woes")
    edit(artifact, files=files)
    assert verify(artifact) == [f"{artifact / MANIFEST}: the recorded digest does not match the recorded files"]


@pytest.mark.parametrize("name", ["rows.txt", "logs/times.txt"])
def test_a_file_that_changed_or_is_gone_is_found(artifact: Path, name: str) -> None:
    (artifact / name).write_text("roes" if name == "rows.txt" else "tomes")
    (problem,) = verify(artifact)
    assert problem.startswith(f"{artifact / name}: ")
    (artifact / name).unlink()
    (problem,) = verify(artifact)
    assert problem.startswith(f"{artifact / name}: ")


def test_a_file_that_nobody_committed_is_found(artifact: Path) -> None:
    (artifact / "extra.txt").write_text("more")
    assert verify(artifact) == [f"{artifact / 'extra.txt'}: not in the manifest"]


def test_the_digest_is_over_kind_and_contents_and_leaves_out_logs() -> None:
    files = {"rows.txt": {"sha256": "a"}, "logs/times.txt": {"sha256": "b"}}
    digest = content_digest("dataset", files)
    assert content_digest("dataset", {**files, "logs/times.txt": {"sha256": "c"}}) == digest
    others = [
        ("model", files),
        ("dataset", {**files, "rows.txt": {"sha256": "c"}}),
        ("dataset", {"r": {"sha256": "a"}}),
    ]
    assert digest not in [content_digest(kind, changed) for kind, changed in others]


def test_a_byte_far_into_a_large_file_counts(tmp_path: Path) -> None:
    directory = tmp_path / "model-0001"
    directory.mkdir()
    content = bytearray(3 << 20)
    (directory / "weights").write_bytes(content)
    large = commit_artifact(directory, "model", "sft")
    content[-1] = 1
    (large / "weights").write_bytes(content)
    assert len(verify(large)) == 1


def test_a_commit_takes_nobodys_place(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    before = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    again = artifact.with_name("again")
    again.mkdir()
    (again / "rows.txt").write_text("other")
    manifest = read_manifest(commit_artifact(again, "dataset", "curate"))
    again.rename(artifact.with_name("staged"))
    with pytest.raises(UsageError, match="is there already"):
        commit(artifact.with_name("staged"), artifact, manifest)
    assert {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_the_modes_of_what_is_committed_follow_the_umask(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        directory = tmp_path / "model-0001"
        (directory / "sub").mkdir(parents=True)
        (directory / "weights").write_text("w")
        (directory / "sub" / "more").write_text("m")
        (directory / "weights").chmod(0o600)
        (directory / "sub").chmod(0o700)
        made = commit_artifact(directory, "model", "sft")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [made, *made.rglob("*")]}
    assert modes == {"model-0001": folder, "sub": folder, "weights": file, "more": file, MANIFEST: file}


def test_a_manifest_of_a_newer_version_is_named_as_such(artifact: Path) -> None:
    edit(artifact, version=99, something="new")
    with pytest.raises(UsageError, match=r"version 99.*newer posttrain"):
        read_manifest(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"kind": 1}'])
def test_a_torn_manifest_is_one_line_that_does_not_tell_to_delete_without_a_copy(artifact: Path, text: str) -> None:
    (artifact / MANIFEST).write_text(text)
    with pytest.raises(UsageError, match="restore it from a copy, or delete the folder") as caught:
        read_manifest(artifact)
    assert "\n" not in str(caught.value)
