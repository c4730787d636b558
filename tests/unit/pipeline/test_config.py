"""Composition: Hydra groups and overrides become one checked configuration, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.pipeline.config.compose import compose_config
from posttrain.stage.errors import UsageError

RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - override /tracking: none
  - _self_
name: mine
seed: 3
stages:
  demo: {run: data.demo}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with two recipes of the user's own, one nested."""
    (tmp_path / "recipe" / "family").mkdir(parents=True)
    (tmp_path / "recipe" / "mine.yaml").write_text(RECIPE)
    (tmp_path / "recipe" / "family" / "small.yaml").write_text(RECIPE.replace("name: mine", "name: small"))
    return tmp_path


def test_a_recipe_of_the_users_own_composes_with_the_shipped_groups(own: Path) -> None:
    config = compose_config(["recipe=mine", "distributed=ddp", "launcher.max_parallel=5"], own)
    assert (config.name, config.seed, config.root) == ("mine", 3, "outputs")
    assert list(config.stages) == ["demo"]
    assert (config.distributed.kind, config.tracking.wandb, config.launcher.max_parallel) == ("ddp", "disabled", 5)


def test_nested_recipes_compose(own: Path) -> None:
    assert compose_config(["recipe=family/small"], own).name == "small"


def test_overrides_have_the_last_word_and_need_no_yaml_entry(own: Path) -> None:
    config = compose_config(
        ["recipe=mine", "seed=7", "train.dpo.beta=0.25", "stages.demo.with.num_texts=9", "data.curate.sources=[]"], own
    )
    assert config.seed == 7
    assert config.node("train.dpo") == {"beta": 0.25}
    assert config.node("data.curate") == {"sources": []}
    node = config.stages["demo"]
    assert node is not None
    assert node.overrides == {"num_texts": 9}


def test_a_stage_can_be_taken_away(own: Path) -> None:
    config = compose_config(["recipe=mine", "stages.demo=null", "stages.other.run=data.demo"], own)
    assert config.stages["demo"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe=mien", "recipe=mien: no such recipe; did you mean 'mine'?"),
        ("distributed=dpp", "distributed=dpp: no such distributed; did you mean 'ddp'?"),
        ("sed=1", "sed: unknown key; did you mean 'seed'?"),
        ("seed=abc", "seed: 'abc': input should be a valid integer"),
        ("train.swt.beta=1", "train.swt: unknown key; did you mean 'sft'?"),
        ("stages.demo.rnu=1", "stages.demo.rnu: unknown key; did you mean 'run'?"),
        ("stages.demo.wiht.num_texts=1", "stages.demo.wiht: unknown key; did you mean 'with'?"),
        ("stages.dem.with.num_texts=1", "stages.dem: no such stage; did you mean 'demo'?"),
        ("launcher.max_paralel=1", "launcher.max_paralel: unknown key; did you mean 'max_parallel'?"),
        ("train.dpo.beta=0.1,0.2", "train.dpo.beta=0.1,0.2: several values; give one"),
        ("train.dpo.loss=[1", "train.dpo.loss=[1: "),
        ("seed", "'seed': not of the form key=value"),
        ("distributed.num_processes=2", "distributed: num_processes=2 needs distributed=ddp"),
        ("distributed.deepspeed={a: 1}", "distributed: give deepspeed a configuration with kind=deepspeed"),
        ("run_name=../x", "run_name: '../x': string should match pattern"),
        ("name=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("~stages.nothing", "Could not delete from config. 'stages.nothing' does not exist."),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_fix(own: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose_config(["recipe=mine", override], own)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_config_dir_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        compose_config([], tmp_path / "nowhere")
