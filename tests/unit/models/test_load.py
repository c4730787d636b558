"""An adapter is used on the backbone that it was trained on, and on no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.models.load import BASE_FILE, backbone_directory
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic


def artifact(directory: Path, content: str) -> Path:
    directory.mkdir()
    (directory / "weights").write_text(content)
    return commit_artifact(directory, "model", "base")


def test_an_adapter_finds_its_backbone_and_notices_when_that_is_another(tmp_path: Path) -> None:
    backbone = artifact(tmp_path / "base-0001", "weights")
    assert backbone_directory(backbone) == backbone
    adapter = artifact(tmp_path / "sft-0001", "adapter")
    write_json_atomic(adapter / BASE_FILE, {"base": backbone.name, "digest": read_manifest(backbone).digest})
    assert backbone_directory(adapter) == backbone
    backbone.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"base artifact .*base-0001 is missing"):
        backbone_directory(adapter)
    artifact(tmp_path / "base-0001", "other weights")
    with pytest.raises(UsageError, match="but the adapter sft-0001 was trained on"):
        backbone_directory(adapter)
