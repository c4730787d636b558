"""An adapter is used on the backbone that it was trained on, and on no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.models.load import BASE_FILE, backbone_directory
from posttrain.stage.artifact import read_manifest, trusts_remote_code
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


def test_permission_to_run_a_models_own_code_reaches_what_is_trained_from_it(tmp_path: Path) -> None:
    def made(name: str, parents: dict[str, Path], facts: dict[str, bool]) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        return commit_artifact(tmp_path / name, "model", name, parents, **facts)

    for permitted in (True, False):
        base = made(f"base-{permitted}", {}, {"trust_remote_code": permitted})
        trained = made(f"sft-{permitted}", {"model": base}, {})
        assert trusts_remote_code(made(f"dpo-{permitted}", {"model": trained}, {})) is permitted
