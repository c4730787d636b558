"""Memory that a stage with rollouts is planned to take, as `posttrain plan` has it."""

from __future__ import annotations

from typing import Any

import torch

from posttrain.models.load import backbone_directory
from posttrain.plan.families import read_shape
from posttrain.plan.footprint import Rollouts, Setting, Training
from posttrain.plan.memory import MemoryEstimate
from posttrain.stage.engine import shards_like_zero
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.train.config.rollout import RolloutConfig
from posttrain.train.engine.batching import BatchPlan


def estimated_rollouts(
    config: RolloutConfig, context: Context, plan: BatchPlan, longest_prompt: int, with_reference: bool
) -> MemoryEstimate | None:
    """Return the estimate for one process, on the longest prompt that there is; None for a family of no known shape."""
    try:
        shape = read_shape(backbone_directory(context.inputs["model"]))
        reward_model = context.inputs.get("reward")
        reward = read_shape(backbone_directory(reward_model)) if reward_model is not None else None
    except UsageError:  # an estimate is a courtesy, not a condition
        return None
    critic: Any = getattr(config, "critic", None)
    learns_beside = None if critic is None or critic.kind == "shared" else critic.kind
    training = Training(
        shape,
        "lm",
        row_tokens=longest_prompt + config.max_new_tokens,
        processes=plan.world_size,
        rank=config.adapter.rank,
        target_modules=config.adapter.target_modules,
        rollouts=Rollouts(
            config.max_new_tokens,
            config.rollout_batch,
            with_reference,
            reward,
            {"reward_model": reward, "policy": shape}.get(learns_beside or ""),
        ),
        share=plan.micro_batch_size * plan.accumulation,
        on_cpu=not torch.cuda.is_available(),
        optimizer=config.optimizer.kind,
    )
    zero = shards_like_zero(context.spec.distributed)
    return training.memory(
        Setting(plan.micro_batch_size, config.gradient_checkpointing, config.adapter.kind, config.dtype, zero)
    )
