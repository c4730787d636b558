"""Groups that speak for all stages reach every one of them, a stage that is added later included."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline.config.compose import compose_config, compose_values
from posttrain.pipeline.config.hardware import HardwareConfig
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.pipeline.slurm.script import SlurmLauncher
from posttrain.stage.errors import UsageError

CONF = Path(__file__).resolve().parents[3] / "conf"
GPUS = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml") if path.stem != "cpu")
KEEPS_ITS_PRECISION = "train.base"
"""Its dtype is that of stored weights, which a machine has no say in."""
GIVEN = ["paths.model=model", "paths.demonstrations=rows.jsonl", "paths.comparisons=pairs.jsonl"]


def knobs(run: str) -> set[str]:
    """Return the names of a stage type's knobs."""
    return {field.name for field in dataclasses.fields(STAGE_TYPES[run].schema())}


def values_of(run: str, *groups: str) -> dict[str, Any]:
    """Return what groups set for a stage type, under a recipe that sets nothing for it."""
    folder, name = run.split(".")
    values: dict[str, Any] = compose_values(["recipe=own/sft", *GIVEN[:2], *groups]).get(folder, {}).get(name, {})
    return values


@pytest.mark.parametrize("hardware", GPUS)
@pytest.mark.parametrize("run", [run for run in STAGE_TYPES if "dtype" in knobs(run) and run != KEEPS_ITS_PRECISION])
def test_gpus_reach_every_stage_that_computes(run: str, hardware: str) -> None:
    found = values_of(run, f"hardware={hardware}")
    assert found["dtype"] == "bfloat16"
    assert {field.name for field in dataclasses.fields(HardwareConfig)} & knobs(run) <= set(found)


@pytest.mark.parametrize("run", [run for run in STAGE_TYPES if "dtype" in knobs(run)])
def test_a_cpu_changes_no_stage(run: str) -> None:
    assert not {"dtype", "tf32", "gradient_checkpointing"} & set(values_of(run, "hardware=cpu"))


@pytest.mark.parametrize("adapter", sorted(path.stem for path in (CONF / "adapter").glob("*.yaml")))
@pytest.mark.parametrize("run", [run for run in STAGE_TYPES if {"adapter", "four_bit"} & knobs(run)])
def test_an_adapter_reaches_every_stage_that_can_have_one(run: str, adapter: str) -> None:
    found = values_of(run, f"adapter={adapter}")
    assert found.get("adapter", {}).get("kind", "full") == (adapter if "adapter" in knobs(run) else "full")
    assert found.get("four_bit", False) == (adapter == "qlora" and "four_bit" in knobs(run))


def test_a_recipe_wins_over_hardware_and_the_command_line_over_both() -> None:
    groups = ["recipe=smollm2_135m/sft_reward_dpo", "hardware=h100x8"]
    sft = {stage.name: stage.config for stage in build_graph(compose_config(groups))}["sft"]
    assert (sft.micro_batch_size, sft.gradient_checkpointing) == (4, True)
    more = ["train.sft.micro_batch_size=2", "train.sft.dtype=float32", "hardware.gradient_checkpointing=false"]
    sft = {stage.name: stage.config for stage in build_graph(compose_config([*groups, *more]))}["sft"]
    assert (sft.micro_batch_size, sft.dtype, sft.gradient_checkpointing) == (2, "float32", False)


def test_a_recipe_and_the_command_line_choose_the_engine_of_a_node() -> None:
    for groups, engine in (
        (["recipe=smollm2_135m/sft_reward_dpo"], "fsdp"),
        (["recipe=llama3_1_8b_zero3/sft_dpo"], "deepspeed"),
        (["recipe=llama3_1_8b_zero3/sft_dpo", "distributed=ddp"], "ddp"),
    ):
        assert compose_config([*groups, "hardware=gpu8"]).distributed.kind == engine


@pytest.mark.parametrize(("hardware", "processes"), [("gpu1", 1), ("gpu8", 8), ("gpu8x2", 16), ("h100x8", 8)])
@pytest.mark.parametrize("launcher", ["slurm", "slurm_cpu"])
def test_the_jobs_of_a_cluster_have_the_machine_that_was_named(hardware: str, processes: int, launcher: str) -> None:
    config = compose_config(["recipe=own/sft_reward_ppo", *GIVEN, f"hardware={hardware}", f"launcher={launcher}"])
    stages = {stage.name: stage for stage in build_graph(config)}
    assert SlurmLauncher(config).distributed(stages["ppo"]).num_processes == processes
    assert stages["evaluate_ppo"].slurm.gpus_per_node == 1


def test_a_value_of_a_machine_that_was_not_named_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"hardware\.micro_batch_size: hardware=cpu hands nothing on .* hardware=gpu1"):
        compose_config(["recipe=demo", "hardware.micro_batch_size=2"])
