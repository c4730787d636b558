"""What stages that learn from their own responses settle before a model is loaded."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from transformers import AutoConfig

from posttrain.sample.models import backbone_directory, trusts_remote_code
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.train.batching import BatchPlan, plan_batches
from posttrain.train.dataset import Row
from posttrain.train.ppo_config import RolloutConfig

log = logging.getLogger(__name__)


def plan_phases(config: RolloutConfig, passes: int, num_prompts: int, context: Context) -> BatchPlan:
    """Return how the responses of an optimizer step are laid out, and how many steps there are.

    ``passes`` is the number of passes over a rollout.
    """
    phases = math.ceil(config.epochs * num_prompts * config.samples_per_prompt / config.rollout_batch_size)
    return plan_batches(
        num_prompts,
        config.global_batch_size,
        config.micro_batch_size,
        context.spec.distributed.num_processes,
        config.epochs,
        config.max_steps if config.max_steps is not None else phases * passes * config.mini_batches,
    )


def require_room(prompts: list[Row], max_new_tokens: int, source: Path) -> None:
    """Check that every prompt leaves room for a response; raise UsageError that names the first that does not."""
    backbone = backbone_directory(source)
    config = AutoConfig.from_pretrained(backbone, trust_remote_code=trusts_remote_code(backbone))
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    if long := [row for row in prompts if row["length"] + max_new_tokens > limit]:
        raise UsageError(
            f"max_new_tokens={max_new_tokens}: {len(long)} of {len(prompts)} prompts leave no room for it in "
            f"the model's context of {limit} (the first: {long[0]['id']}, {long[0]['length']} tokens); lower it, or "
            f"tokenize with max_length={limit - max_new_tokens}"
        )


def announce(plan: BatchPlan, config: RolloutConfig, passes: int, num_prompts: int) -> None:
    """Print what follows from the configuration."""
    log.info(
        "a rollout of %d responses, %d to each of %d of %s prompts, then %d passes of %d steps; a step of %d responses "
        "= %d rows x %d processes x %d accumulation; %d steps in all",
        config.rollout_batch_size,
        config.samples_per_prompt,
        config.rollout_batch_size // config.samples_per_prompt,
        f"{num_prompts:,}",
        passes,
        config.mini_batches,
        plan.global_batch_size,
        plan.micro_batch_size,
        plan.world_size,
        plan.accumulation,
        plan.max_steps,
    )
