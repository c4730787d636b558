"""Composition: Hydra groups and overrides become one checked configuration, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.overrides import outvoted
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import to_dict

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
        ("mine", "'mine': not of the form key=value; did you mean recipe=mine?"),
        ("mien", "'mien': not of the form key=value; did you mean recipe=mine?"),
        ("ddp", "'ddp': not of the form key=value; did you mean distributed=ddp?"),
        ("recipe=nowhere.yaml", "recipe=nowhere.yaml: no such file; give a name, or the path of a recipe"),
        ("paths.model=x", "paths.model: nothing in this recipe takes a path of this name; it takes none"),
        ("~stages.nothing", "Could not delete from config. 'stages.nothing' does not exist."),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_fix(own: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose_config(["recipe=mine", override], own)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_paths_that_lack_or_are_misspelt_are_named_with_their_key() -> None:
    with pytest.raises(UsageError) as caught:
        compose_config(["recipe=own/sft", "paths.model=m"])
    assert str(caught.value) == ("paths.demonstrations: missing; this recipe needs it: give paths.demonstrations=…")
    with pytest.raises(UsageError, match=r"^paths\.modle: nothing in this recipe .*; did you mean 'model'\?$"):
        compose_config(["recipe=own/sft", "paths.modle=m", "paths.demonstrations=d"])


NAMES = [
    "a b.jsonl",
    "ü 漢.jsonl",
    "a=b&c.jsonl",
    "a, b.jsonl",
    "~x.jsonl",
    'it\'s "so".jsonl',
    "(1) {a}.jsonl",
    "[a].jsonl",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    given = ["recipe=own/sft", f"paths.model={path}", f"paths.demonstrations={path}", f"root={path}"]
    (config,) = compose_sweep(given).values()
    assert (config.paths["model"], config.paths["demonstrations"], config.root) == (str(path), str(path), str(path))


def test_a_list_of_paths_needs_no_quotes_and_home_is_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = compose_config(["recipe=own/sft", "paths.model=~/m", "paths.demonstrations=[a b.jsonl, c=ü.csv]"])
    assert config.paths["model"] == "/home/me/m"
    assert config.paths["demonstrations"] == ["a b.jsonl", "c=ü.csv"]


def test_what_is_quoted_for_hydra_stays_as_it_is() -> None:
    config = compose_config(
        ["recipe=own/sft", "paths.model='a,b'", 'paths.demonstrations=["a b",c]', "paths.items=null"]
    )
    assert (config.paths["model"], config.paths["demonstrations"]) == ("a,b", ["a b", "c"])
    assert config.paths["items"] is None


def test_the_configuration_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    config = compose_config(["recipe=smoke", "train.dpo.beta=0.3", "run_name=mine"])
    file = tmp_path / "a run" / "config.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
    assert compose_config([f"recipe={file}"]) == config
    changed = compose_config([f"recipe={file}", "seed=4", "launcher=slurm", "train.dpo.beta=0.5"])
    assert (changed.seed, changed.launcher.kind, changed.train.dpo["beta"]) == (4, "slurm", 0.5)
    assert changed.stages == config.stages
    with pytest.raises(UsageError, match=r"^adapter=…: recipe=.* holds every knob of its run already"):
        compose_config([f"recipe={file}", "adapter=lora"])


def test_a_recipe_is_found_by_its_path(own: Path) -> None:
    assert compose_config([f"recipe={own}/recipe/mine.yaml", "seed=9"]).seed == 9
    (own / "other.yaml").write_text("a: 1\n")
    with pytest.raises(UsageError, match="neither a recipe"):
        compose_config([f"recipe={own}/other.yaml"])


def test_a_knob_that_a_stage_of_the_graph_has_of_its_own_is_said_not_to_reach_it() -> None:
    overrides = ["recipe=smoke", "train.dpo.beta=0.2", "stages.dpo.with.beta=0.3", "train.sft.epochs=2"]
    config = compose_config(overrides)
    assert outvoted(overrides, config.stages) == []  # the user said both
    by_recipe = [text for text in overrides if not text.startswith("stages.")]
    assert outvoted(by_recipe, config.stages) == [
        "train.dpo.beta=0.2 does not reach stage dpo, whose own value is 0.3; give stages.dpo.with.beta=0.2"
    ]


def test_a_missing_config_dir_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        compose_config([], tmp_path / "nowhere")
