"""What each stage that makes weights writes to the disk, for `posttrain plan` and before a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.pipeline.commands.planning.stages import SEQUENCES_PER_ROW, WITH_ROLLOUTS, base_shape, critic_of
from posttrain.pipeline.graph.graph import Stage
from posttrain.plan.disk import Writes
from posttrain.plan.memory import count_trainable
from posttrain.plan.model import Head, count_parameters
from posttrain.plan.optimizers import optimizer_bytes


def writes_of(stage: Stage, stages: Mapping[str, Stage]) -> Writes | None:
    """Return what a stage writes; None for one that makes no weights.

    Raises UsageError where nothing here states the model's shape.
    """
    run, config = stage.type.run, stage.config
    if run == "train.base":
        return Writes(count_parameters(base_shape(stage, stages)))
    if run not in SEQUENCES_PER_ROW and run not in WITH_ROLLOUTS:
        return None
    shape = base_shape(stage, stages)
    head: Head = "score" if run == "train.reward" else "lm"
    adapter, learner = config.adapter, config.optimizer.kind
    trained = count_trainable(shape, head, adapter.kind, adapter.rank, adapter.target_modules)
    options: dict[str, Any] = {"rank": adapter.rank, "target_modules": adapter.target_modules}
    states = optimizer_bytes(shape, head, learner, adapter=adapter.kind != "full", **options)
    stored, critic = trained, critic_of(stage, stages)
    if critic is not None:
        trained += count_parameters(critic, "score")
        states += optimizer_bytes(critic, "score", learner)
    low = config.dtype == "bfloat16" and stage.distributed.kind == "deepspeed"
    return Writes(
        stored,
        2 if low or config.save_dtype == "bfloat16" else 4,
        trained,
        trained_bytes=2 if low else 4,
        states=states + (4 * trained if low else 0),  # the float32 copy of bfloat16 weights
        kept=config.keep_checkpoints,
    )
