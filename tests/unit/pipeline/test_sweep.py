"""Sweeps: which overrides are several values, and what each point is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.stage.errors import UsageError


def test_without_a_sweep_there_is_one_point_without_a_label() -> None:
    points = compose_sweep(["recipe=smoke", "train.dpo.beta=0.2", "run_name=mine"])
    assert {label: config.run_name for label, config in points.items()} == {"": "mine"}


def test_several_values_are_a_point_each_and_several_sweeps_a_grid() -> None:
    points = compose_sweep(["recipe=smoke", "train.dpo.beta=0.05,0.1", "seed=choice(1,2)", "train.sft.max_steps=3"])
    found = {label: (config.train.dpo["beta"], config.seed) for label, config in points.items()}
    assert found == {
        "train.dpo.beta=0.05 seed=1": (0.05, 1),
        "train.dpo.beta=0.05 seed=2": (0.05, 2),
        "train.dpo.beta=0.1 seed=1": (0.1, 1),
        "train.dpo.beta=0.1 seed=2": (0.1, 2),
    }
    assert all(config.train.sft["max_steps"] == 3 for config in points.values())


def test_a_range_and_a_group_can_be_swept() -> None:
    assert list(compose_sweep(["recipe=smoke", "seed=range(1,4)"])) == ["seed=1", "seed=2", "seed=3"]
    points = compose_sweep(["recipe=smoke", "distributed=single,ddp"])
    assert [config.distributed.kind for config in points.values()] == ["single", "ddp"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("launcher.slurm.setup=[module load cuda,ulimit -n 4096]", ["module load cuda", "ulimit -n 4096"]),
        ("launcher.slurm.setup=['echo a, b']", ["echo a, b"]),
        ('launcher.slurm.setup=["echo (a, b)"]', ["echo (a, b)"]),
        ("launcher.slurm.environment={A: x,B: y}", {"A": "x", "B": "y"}),
        ("launcher.slurm.environment.A='x,y'", {"A": "x,y"}),
    ],
)
def test_lists_and_quoted_commas_are_one_value(override: str, value: object) -> None:
    (config,) = compose_sweep(["recipe=smoke", override]).values()
    name = "setup" if ".setup" in override else "environment"
    assert getattr(config.launcher.slurm, name) == value


def test_lists_are_swept_with_choice() -> None:
    points = compose_sweep(["recipe=smoke", "launcher.slurm.setup=choice([a],[b,c])"])
    assert [config.launcher.slurm.setup for config in points.values()] == [["a"], ["b", "c"]]


def test_every_point_of_a_named_run_has_a_name_of_its_own() -> None:
    points = compose_sweep(["recipe=smoke", "run_name=mine", "train.dpo.beta=0.05,0.1,0.3"])
    assert [config.run_name for config in points.values()] == ["mine-beta-0.05", "mine-beta-0.1", "mine-beta-0.3"]
    assert list(points) == ["train.dpo.beta=0.05", "train.dpo.beta=0.1", "train.dpo.beta=0.3"]


def test_a_point_keeps_its_name_when_others_come_before_it() -> None:
    first, second = (
        {label: config.run_name for label, config in compose_sweep(["recipe=smoke", "run_name=r", *more]).items()}
        for more in (["seed=1,2", "train.dpo.beta=0.1"], ["train.dpo.beta=0.1", "seed=0,1,2"])
    )
    assert first == {label: second[label] for label in first}


def test_knobs_of_the_same_last_name_do_not_share_a_name() -> None:
    points = compose_sweep(["recipe=smoke", "run_name=r", "train.dpo.epochs=1,2", "train.sft.epochs=1,2"])
    assert len({config.run_name for config in points.values()}) == 4


def test_paths_are_swept_where_no_file_has_the_commas(tmp_path: Path) -> None:
    both = f"paths.demonstrations={tmp_path}/a b.jsonl,{tmp_path}/c=d.jsonl"
    points = compose_sweep(["recipe=own/sft", "paths.model=m", both])
    found = [config.paths["demonstrations"] for config in points.values()]
    assert found == [f"{tmp_path}/a b.jsonl", f"{tmp_path}/c=d.jsonl"]


def test_a_sweep_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^train\.dpo\.beta=interval\(0,1\): .* values that can be counted"):
        compose_sweep(["recipe=smoke", "train.dpo.beta=interval(0,1)"])


def test_what_does_not_parse_is_named() -> None:
    with pytest.raises(UsageError, match=r"^train\.dpo\.beta=\[0\.1,: "):
        compose_sweep(["recipe=smoke", "train.dpo.beta=[0.1,"])
