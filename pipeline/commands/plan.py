"""`posttrain plan`: what each training stage of a pipeline needs, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.data.config.tokenize import DEFAULT_LENGTH
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.local.launch import local_launcher
from posttrain.plan.families import read_shape
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import Head, ModelShape, count_adapter, training_flops_per_token
from posttrain.plan.table import StagePlan, print_plan
from posttrain.stage.engine import shards_like_zero
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean

SEQUENCES_PER_ROW = {"train.sft": 1, "train.reward": 2, "train.dpo": 2, "train.kto": 1}
"""Sequences that one row puts through the model; a reward model's group is taken as a pair."""


def print_pipeline_plan(config: PipelineConfig) -> int:
    """Print the plan of a pipeline's training stages and return the exit code."""
    stages = {stage.name: stage for stage in build_graph(config)}
    launcher = local_launcher(config, list(stages.values()))
    trained = [stage for stage in stages.values() if stage.type.run in SEQUENCES_PER_ROW]
    spread = {stage.name: launcher.distributed(stage) for stage in trained}
    plans = [
        plan_stage(stage, stages, spread[stage.name].num_processes, shards_like_zero(spread[stage.name]))
        for stage in trained
    ]
    print_plan(plans, max((distributed.num_processes for distributed in spread.values()), default=1))
    return EXIT_DONE


def plan_stage(stage: Stage, stages: dict[str, Stage], num_processes: int, zero: int | None) -> StagePlan:
    """Return the plan of one training stage; every sequence is taken as long as its tokens may be."""
    config = stage.config
    shape = base_shape(stage, stages)
    head: Head = "score" if stage.type.run == "train.reward" else "lm"
    packed = stage.type.run == "train.sft" and config.packing
    length = config.pack_length if packed else _token_stage(stage, stages).config.max_length or DEFAULT_LENGTH
    rows = min(config.micro_batch_size, max(1, config.global_batch_size // num_processes))
    adapter = config.adapter
    memory = estimate_memory(
        shape,
        tokens=rows * SEQUENCES_PER_ROW[stage.type.run] * length,
        head=head,
        adapter=adapter.kind,
        rank=adapter.rank,
        target_modules=adapter.target_modules,
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        num_processes=num_processes,
        zero_stage=zero,
    )
    low_rank = None if adapter.kind == "full" else count_adapter(shape, adapter.rank, adapter.target_modules)
    flops = training_flops_per_token(shape, length, head=head, adapter_parameters=low_rank)
    return StagePlan(stage.name, memory, flops)


def base_shape(stage: Stage, stages: dict[str, Stage]) -> ModelShape:
    """Return the shape of the base model that a stage's model descends from.

    Raises UsageError when nothing here states it.
    """
    while stage.type.run != "train.base":
        stage = stages[stage.inputs["model"]]
    config: Any = stage.config
    if config.path is not None:
        return read_shape(Path(config.path))
    if config.hub_name is not None:
        if config.hub_name in KNOWN_SHAPES:
            return KNOWN_SHAPES[config.hub_name]
        hint = did_you_mean(config.hub_name, KNOWN_SHAPES)
        raise UsageError(
            f"train.base.hub_name: {config.hub_name!r} has no known shape; give train.base.path=FOLDER{hint}"
        )
    made = config.architecture
    return ModelShape(
        vocab_size=made.vocab_size,
        hidden_size=made.hidden_size,
        intermediate_size=made.intermediate_size,
        num_layers=made.num_layers,
        num_heads=made.num_heads,
        num_kv_heads=made.num_kv_heads,
        head_dim=made.hidden_size // made.num_heads,
        tied_embeddings=True,
    )


def _token_stage(stage: Stage, stages: dict[str, Stage]) -> Stage:
    return stages[stage.inputs["data"]]
