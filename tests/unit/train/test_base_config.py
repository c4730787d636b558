"""Where the base model comes from: a folder, the Hub by its usual form of name, or nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build, external_paths, to_dict
from posttrain.train.config.base import BaseConfig


def base(path: str, **more: str) -> BaseConfig:
    return build(BaseConfig, {"path": path, **more}, "train.base")


def test_a_name_of_the_hub_may_stand_where_a_folder_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = base("HuggingFaceTB/SmolLM2-135M", revision="main")
    assert (config.path, config.hub_name) == (None, "HuggingFaceTB/SmolLM2-135M")
    assert external_paths(config) == []
    again = build(BaseConfig, to_dict(config), "train.base")
    assert again == config


@pytest.mark.parametrize(
    "path", ["models/stories26k", "./org/name", "/org/name", "~/org/name", "org/name/", "a/b/c", "model", "../org/name"]
)
def test_what_is_no_name_of_the_hub_stays_a_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    config = base(path)
    assert (config.path, config.hub_name) == (path, None)


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base("org/name").path == "org/name"


def test_a_model_has_one_origin() -> None:
    with pytest.raises(UsageError, match=r"exactly one of path, hub_name and architecture \(given: path, hub_name\)"):
        base("org/name", hub_name="org/name")
