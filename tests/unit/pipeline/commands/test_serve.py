"""`posttrain serve`: the command line of an existing server, on an artifact or a folder."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import commit_artifact

from posttrain.pipeline.cli import main


def model(root: Path, stage: str = "dpo", kind: str = "model", **facts: Any) -> Path:
    """Commit what looks like a model."""
    directory = root / "artifacts" / f"{stage}-0123456789abcdef"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"dtype": "float32"}))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return commit_artifact(directory, kind, stage, **facts)


def said(root: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["serve", *words, "--root", str(root), "--dry-run"]) == 0
    return shlex.split(capsys.readouterr().out)


def test_vllm_is_told_name_template_precision_and_where_the_ends_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path, trust_remote_code=True)
    words = said(tmp_path, "dpo", "--vllm", sys.executable, "--port", "9000", capsys=capsys)
    assert words[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    options = dict(zip(words[5:-1:2], words[6:-1:2], strict=True))
    assert options == {
        "--served-model-name": "dpo",
        "--host": "localhost",
        "--port": "9000",
        "--dtype": "float32",
        "--chat-template": str(folder / "chat_template.jinja"),
        "--generation-config": "auto",
    }
    assert words[-1] == "--trust-remote-code"
    monkeypatch.setenv("VLLM_PYTHON", sys.executable)
    named = said(tmp_path, "dpo", "--name", "policy", "--dtype", "bfloat16", capsys=capsys)
    assert {"policy", "bfloat16"} < set(named) and "float32" not in named


def test_transformers_serve_takes_a_folder_that_is_no_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="transformers serve needs posttrain[serve]")
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    words = said(tmp_path, str(tmp_path / "mine"), capsys=capsys)
    assert words[0].endswith("/transformers") and words[1:3] == ["serve", str(tmp_path / "mine")]
    assert words[3:] == ["--host", "localhost", "--port", "8000", "--dtype", "auto"]


def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model(tmp_path)
    model(tmp_path, "reward", "reward_model")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for words, message in (
        (["reward"], "a reward_model artifact; give a model"),
        ([str(tmp_path / "adapter")], "an adapter; posttrain export "),
        (["dpo", "--vllm", str(tmp_path)], "no program; give the Python of an environment that has vLLM"),
        (["dop"], "artifact 'dop': not in"),
    ):
        assert main(["serve", *words, "--root", str(tmp_path), "--dry-run"]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    monkeypatch.setattr("posttrain.pipeline.commands.serve.NEEDS", ("no_such_package",))
    assert main(["serve", "dpo", "--root", str(tmp_path), "--dry-run"]) == 2
    assert "needs no_such_package: pip install 'posttrain[serve]'; or give --vllm PYTHON" in capsys.readouterr().err
