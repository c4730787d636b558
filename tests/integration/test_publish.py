"""A model goes to a stand-in of the Hub, with its card, and comes back as the base of another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_model
from hub_server import TOKEN, Hub

from posttrain.pipeline.cli import main


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.end()


def call(hub: Hub, root: Path, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **ENVIRONMENT, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=root)


def test_a_model_is_published_and_comes_back(tmp_path: Path, hub: Hub) -> None:
    model = build_model(tmp_path)
    hub.repositories["me/my-model"] = {"old.txt": b"of an earlier version"}
    publish = ["posttrain.pipeline.cli", "publish", str(model), "me/my-model", "--root", str(tmp_path)]
    done = call(hub, tmp_path, *publish)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"published: {hub.url}/me/my-model" in done.stdout
    files = hub.repositories["me/my-model"]
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert files["README.md"].startswith(b"---\n") and b"# my-model" in files["README.md"]
    assert "old.txt" not in files
    assert hub.private == {"me/my-model": True}
    base = ["posttrain.train.base", "hub_name=me/my-model", f"output={tmp_path / 'artifacts' / 'base'}"]
    back = call(hub, tmp_path, *base, "tracking.wandb=disabled")
    assert back.returncode == 0, back.stderr[-3000:]
    assert (tmp_path / "artifacts" / "base" / "model.safetensors").read_bytes() == files["model.safetensors"]
    refused = call(hub, tmp_path, *publish, token="hf_other")
    assert refused.returncode == 2
    assert "me/my-model: the Hub says 401; run `hf auth login`, or set HF_TOKEN" in refused.stderr
    assert len(hub.messages) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-model", "my-model: whose? give USER/NAME"),
        ("me/my model", "my model: Repo id"),
        ("a/b/c", "a/b/c: Repo"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_written(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(tmp_path)
    assert main(["publish", str(model), name, "--root", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
