"""Only a checkpoint whose every byte is as written is resumed from."""

from pathlib import Path

import pytest

from posttrain.train.checkpoints.protocol import (
    checkpoint_path,
    checkpoint_problems,
    checkpoint_steps,
    commit_checkpoint,
    newest_valid_checkpoint,
    rotate_checkpoints,
    staging_directory,
)


def write(directory: Path, step: int) -> Path:
    staged = checkpoint_path(staging_directory(directory), step)
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(bytes([step % 256]) * 100)
    (staged / "optimizer.pt").write_bytes(b"moments" * 10)
    return commit_checkpoint(directory, step, {"world_size": 1})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "COMMIT.json"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_checkpoint_is_moved_aside_for_the_one_before_it(tmp_path: Path, damage, file: str) -> None:
    write(tmp_path, 5)
    newest = write(tmp_path, 10)
    damage(newest / file)
    assert newest_valid_checkpoint(tmp_path) == checkpoint_path(tmp_path, 5)
    assert (tmp_path / "invalid-checkpoint-10").is_dir()
    assert checkpoint_steps(tmp_path) == [5]


def test_the_message_names_the_file_and_both_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    flip(path / "optimizer.pt")
    (problem,) = checkpoint_problems(path)
    assert problem.startswith(str(path / "optimizer.pt"))
    assert problem.count("SHA-256") == 1
    assert "recorded" in problem


def test_what_was_being_written_is_never_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 5)
    staged = checkpoint_path(staging_directory(tmp_path), 10)
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(b"half")
    assert newest_valid_checkpoint(tmp_path) == checkpoint_path(tmp_path, 5)
    assert not staged.exists()


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_valid_checkpoint(tmp_path / "absent") is None


def test_rotation_goes_by_step_not_by_file_time(tmp_path: Path) -> None:
    for step in (100, 20, 9):  # the newest step is the oldest file
        write(tmp_path, step)
    rotate_checkpoints(tmp_path, keep=2)
    assert checkpoint_steps(tmp_path) == [100, 20]
