"""An accepted artifact stands for the key and with the bytes that the record names, and for nothing else."""

from __future__ import annotations

from pathlib import Path

from build_artifacts import commit_artifact

from posttrain.pipeline.runs.resolve import ACCEPT, accepted
from posttrain.stage.record import write_record

KEY = "0123456789abcdef" + "0" * 48


def artifact(root: Path, text: str) -> Path:
    directory = root / "artifacts" / "sft-0001"
    directory.mkdir(parents=True)
    (directory / "weights").write_text(text)
    return commit_artifact(directory, "model", "sft")


def test_a_record_is_about_its_whole_key(tmp_path: Path) -> None:
    made = artifact(tmp_path, "weights")
    assert accepted(tmp_path, KEY) is None
    write_record(made, ACCEPT, KEY, {"key": KEY, "because": "a name changed"})
    assert accepted(tmp_path, KEY) == made
    assert accepted(tmp_path, KEY[:16] + "1" * 48) is None


def test_a_record_is_about_the_bytes_that_it_saw(tmp_path: Path) -> None:
    made = artifact(tmp_path, "weights")
    write_record(made, ACCEPT, KEY, {"key": KEY, "because": "a name changed"})
    made.rename(tmp_path / "elsewhere")
    artifact(tmp_path, "other weights")
    assert accepted(tmp_path, KEY) is None
