"""What the stages of RLOO and GRPO have in common; what differs between them is a `Method`."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from posttrain.stage.entry import Context, StageResult
from posttrain.train.config.group import GroupConfig
from posttrain.train.engine.batching import BatchPlan
from posttrain.train.engine.opening import begin
from posttrain.train.methods.group_episodes import Advantages
from posttrain.train.methods.group_trainer import GroupTrainer
from posttrain.train.nets.policy import trainable_policy
from posttrain.train.rollouts.opening import collector_of, prepare, train_and_save
from posttrain.train.rollouts.whole_copy import whole_copy


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method learns from groups."""

    where: str
    """Configuration path of its stage."""
    trainer: type[GroupTrainer]
    """Our mixin in front of TRL's trainer."""
    arguments: Any
    """TRL's class of arguments."""
    loss_arguments: dict[str, Any]
    """What that takes beside the arguments that all methods have in common."""
    advantages: Advantages
    kl_in_reward: bool
    """Whether the pull to the reference is a part of the reward, or a term of TRL's loss."""


def run_group(config: GroupConfig, context: Context, method: Method) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    tokenizer = begin(context, "prompt")
    prepared = prepare(config, context, tokenizer, config.num_iterations, method.where, with_reference=config.beta > 0)
    arguments = method.arguments(
        **prepared.arguments,
        **group_arguments(config, prepared.plan),
        **method.loss_arguments,
    )
    load = partial(
        trainable_policy,
        prepared.source,
        config.adapter,
        config.dtype,
        config.attention,
        context.spec.distributed,
        method.where,
        whole=True,
    )
    copy = whole_copy(load, config.dtype, context.spec.distributed)
    policy = load()
    build: Any = method.trainer
    trainer: GroupTrainer = build(
        config=config,
        advantages=method.advantages,
        kl_in_reward=method.kl_in_reward,
        where=method.where,
        collector=collector_of(prepared, config, copy or policy, context.spec.seed, arguments.process_index),
        samples=prepared.samples,
        pad_token_id=tokenizer.pad_token_id,
        copy=copy,
        plan=prepared.plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        reward_funcs=_scored_already,
        args=arguments,
        train_dataset=prepared.prompts,
        processing_class=tokenizer,
    )
    return train_and_save(trainer, prepared, context)


def _scored_already(**_: Any) -> list[float]:
    """Stand where TRL wants a reward; rollouts are scored before it sees them."""
    raise AssertionError("TRL was not to score")


def group_arguments(config: GroupConfig, plan: BatchPlan) -> dict[str, Any]:
    """Return what TRL's configurations of RLOO and GRPO have in common."""
    return {
        "num_generations": config.samples_per_prompt,
        "steps_per_generation": plan.accumulation * config.mini_batches,
        "num_iterations": config.num_iterations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "epsilon": config.clip_range,
        "epsilon_high": config.clip_range_high,
        "beta": 0.0,
        "disable_dropout": True,  # a ratio of probabilities is of the policies, not of two masks
        "ignore_data_skip": True,
    }
