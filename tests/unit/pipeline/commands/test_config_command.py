"""`posttrain config`: what a knob is, what is composed, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.pipeline.cli import main
from posttrain.pipeline.commands.config import settings_of
from posttrain.pipeline.config.origins import COMMAND_LINE

RECIPE = "# @package _global_\ndefaults:\n  - override /pipeline: sft\n  - _self_\nname: mine\nseed: 5\n"


def test_each_value_names_the_last_file_that_says_it_or_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(RECIPE + "train: {sft: {optimizer: {learning_rate: 0.5}}}\n")
    given = ["recipe=mine", "adapter=lora", "train.sft.epochs=2", "stages.base.with.path=m"]
    given += ["stages.demonstrations.with.sources=[{name: a, path: b}]", "stages.items=null"]
    found = {one.key: (one.value, one.origin) for one in settings_of(given, tmp_path)}
    assert found["train.sft.optimizer.learning_rate"] == (0.5, "recipe/mine")
    assert found["train.sft.adapter.kind"] == ("lora", "adapter/lora")
    assert found["train.sft.epochs"] == (2, COMMAND_LINE)
    assert found["seed"] == (5, "recipe/mine")
    assert found["sampling.temperature"] == (0.5, "sampling/general")
    assert found["stages.sft.run"] == ("train.sft", "pipeline/sft")


def test_values_of_a_recipe_by_path_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    base = "train: {base: {path: m}}\nstages: {items: null, demonstrations: {with: {sources: [{name: a, path: b}]}}}\n"
    file.write_text(RECIPE + base + "data: {tokenize: {max_length: 99}}\n")
    found = {one.key: one.origin for one in settings_of([f"recipe={file}"], None)}
    assert found["data.tokenize.max_length"] == str(file)


def test_a_key_alone_says_what_the_knob_is_and_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "train.ppo.kl.coef"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("What a nat of KL costs.", "0.05", "≥ 0", "example    train.ppo.kl.coef="))
    assert main(["config", "stages.dpo.seed", "recipe=smoke", "stages.dpo.seed=4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [knob["key"] for knob in said["knobs"]] == ["stages.NAME.seed"]
    assert said["settings"] == [{"key": "stages.dpo.seed", "value": 4, "origin": COMMAND_LINE}]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.dpo.betta", "did you mean 'train.dpo.beta'?"),
        ("epsilon_high", "is train.STAGE.clip_range_high for a STAGE of rloo, grpo here"),
        ("margin_per_rank", "did you mean train.reward.margin_per_rank?"),
    ],
)
def test_an_unknown_key_is_met_with_the_nearest(key: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", key]) == 2
    assert hint in capsys.readouterr().err
