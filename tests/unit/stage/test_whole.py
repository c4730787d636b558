"""Nothing damaged is consumed: sizes at every look, hashes before the first use, and each byte hashed once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.stage import files
from posttrain.stage.errors import UsageError
from posttrain.stage.whole import require_sizes, require_whole


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "artifacts" / "sft-0001"
    (directory / "logs").mkdir(parents=True)
    (directory / "weights").write_bytes(bytes(9000))
    (directory / "logs" / "times.txt").write_text("times")
    return commit_artifact(directory, "model", "sft")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their hash."""
    read: list[str] = []
    real = files.sha256_file

    def noting(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "sha256_file", noting)
    return read


def zero(path: Path) -> None:
    """Change bytes in place: neither size nor inode differ, and the time of writing is put back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"\1" * 4000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_was_just_committed_is_whole_and_not_read_again(model: Path, hashed: list[str]) -> None:
    require_whole(model)
    assert hashed == []


def test_changed_bytes_of_the_same_size_are_found(model: Path) -> None:
    zero(model / "weights")
    require_sizes(model)
    with pytest.raises(UsageError) as caught:
        require_whole(model)
    assert str(caught.value).startswith(f"{model / 'weights'}: SHA-256 is ")
    assert "restore it from a copy, or delete" in str(caught.value)


def test_a_copy_is_read_once(model: Path, tmp_path: Path, hashed: list[str]) -> None:
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("moved"))
    copy = tmp_path / "moved" / "artifacts" / model.name
    require_whole(copy)
    assert sorted(hashed) == ["times.txt", "weights"]
    require_whole(copy)
    assert len(hashed) == 2
    zero(copy / "weights")
    with pytest.raises(UsageError):
        require_whole(copy)


@pytest.mark.parametrize("damage", ["gone", "cut", "manifest"])
def test_a_file_that_is_gone_or_cut_is_found_without_reading(model: Path, damage: str, hashed: list[str]) -> None:
    if damage == "gone":
        (model / "weights").unlink()
    if damage == "cut":
        (model / "weights").write_bytes(b"")
    if damage == "manifest":
        (model / "manifest.json").unlink()
    with pytest.raises(UsageError, match="restore it from a copy, or delete"):
        require_sizes(model)
    assert hashed == []


def test_an_artifact_outside_a_store_leaves_nothing_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "home" / "mine" / "sft"
    directory.mkdir(parents=True)
    (directory / "weights").write_text("w")
    require_whole(commit_artifact(directory, "model", "sft"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["home", "mine", "sft"]


def test_a_torn_memory_is_only_a_cold_one(model: Path, tmp_path: Path, hashed: list[str]) -> None:
    for path in (tmp_path / "cache" / "whole").iterdir():
        path.write_text('{"cut sho')
    require_whole(model)
    assert sorted(hashed) == ["times.txt", "weights"]
