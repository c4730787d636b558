"""What leaves the store is whole, and can be read by whom the umask lets read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.stage.errors import UsageError
from posttrain.train.export import export


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "artifacts" / "sft-0001"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_text("weights")
    return commit_artifact(directory, "model", "sft")


def test_an_export_has_the_modes_of_the_umask(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").chmod(0o600)  # as a store of an older version has it
    before = os.umask(0o027)
    try:
        export(model, tmp_path / "out", merge=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_damaged_model_is_not_exported(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_text("WEIGHTS")
    with pytest.raises(UsageError, match="SHA-256 is"):
        export(model, tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()
