"""What stages that learn from their own responses settle before a model is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoConfig

from posttrain.models.declared import context_length
from posttrain.models.load import backbone_directory
from posttrain.stage.artifact import trusts_remote_code
from posttrain.stage.errors import UsageError
from posttrain.train.config.rollout import RolloutConfig
from posttrain.train.engine.batching import BatchPlan, plan_batches
from posttrain.train.rows.columns import lengths_of


def plan_phases(config: RolloutConfig, passes: int, num_prompts: int, num_processes: int) -> BatchPlan:
    """Return how the responses of an optimizer step are laid out, and how many steps there are.

    ``passes`` is the number of passes over a rollout.
    """
    phases = math.ceil(config.epochs * num_prompts * config.samples_per_prompt / config.rollout_batch_size)
    return plan_batches(
        num_prompts,
        config.global_batch_size,
        config.micro_batch_size,
        num_processes,
        config.epochs,
        config.max_steps if config.max_steps is not None else phases * passes * config.mini_batches,
    )


def require_room(prompts: Dataset, max_new_tokens: int, source: Path) -> None:
    """Check that every prompt leaves room for a response; raise UsageError that names the first that does not."""
    backbone = backbone_directory(source)
    config = AutoConfig.from_pretrained(backbone, trust_remote_code=trusts_remote_code(backbone))
    limit = context_length(config)
    if limit is None:
        return
    if len(long := np.flatnonzero(lengths_of(prompts) + max_new_tokens > limit)):
        first = prompts[int(long[0])]
        raise UsageError(
            f"max_new_tokens={max_new_tokens}: {len(long)} of {len(prompts)} prompts leave no room for it in "
            f"the model's context of {limit} (the first: {first['id']}, {first['length']} tokens); lower it, or "
            f"tokenize with max_length={limit - max_new_tokens}"
        )


def describe_phases(rollout_batch_size: int, samples_per_prompt: int, mini_batches: int, passes: int) -> str:
    """Return what the steps of a stage with rollouts go over."""
    prompts = rollout_batch_size // samples_per_prompt
    return (
        f"rollouts of {rollout_batch_size} responses, {samples_per_prompt} to each of {prompts} prompts, "
        f"then {passes} passes of {mini_batches} steps"
    )
