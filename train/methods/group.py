"""What the stages of RLOO and GRPO have in common; what differs between them is a `Method`."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from posttrain.stage.entry import Context, StageResult
from posttrain.train.config.group import GroupConfig
from posttrain.train.engine.opening import begin
from posttrain.train.maths.group_losses import GroupOptions
from posttrain.train.methods.group_episodes import Advantages
from posttrain.train.methods.group_trainer import GroupTrainer
from posttrain.train.nets.fused_head import with_fused_head
from posttrain.train.nets.policy import trainable_policy
from posttrain.train.rollouts.opening import collector_of, prepare, train_and_save
from posttrain.train.rollouts.whole_copy import whole_copy


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method learns from groups."""

    where: str
    """Configuration path of its stage."""
    loss: str
    """Which loss, by TRL's name."""
    loss_options: dict[str, Any]
    """What that takes beside the options that all losses have in common."""
    advantages: Advantages
    kl_in_reward: bool
    """Whether the pull to the reference is a part of the reward, or a term of the loss."""


def run_group(config: GroupConfig, context: Context, method: Method) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    tokenizer = begin(context, "prompt")
    prepared = prepare(config, context, tokenizer, config.num_iterations, method.where, with_reference=config.beta > 0)
    arguments = TrainingArguments(**prepared.arguments, ignore_data_skip=True, label_names=[])
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
    with_fused_head(policy, method.where, temperature=config.temperature)
    if config.gradient_checkpointing and isinstance(policy, PeftModel):
        policy.enable_input_require_grads()
    in_reward, in_loss = (config.beta, 0.0) if method.kl_in_reward else (0.0, config.beta)
    trainer = GroupTrainer(
        config=config,
        advantages=method.advantages,
        options=GroupOptions(
            method.loss,
            clip_low=config.clip_range,
            clip_high=config.clip_range_high or config.clip_range,
            beta=in_loss,
            **method.loss_options,
        ),
        kl_in_reward=in_reward,
        where=method.where,
        collector=collector_of(prepared, config, copy or policy, context.spec.seed, arguments.process_index),
        samples=prepared.samples,
        pad_token_id=tokenizer.pad_token_id,
        copy=copy,
        plan=prepared.plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        args=arguments,
        train_dataset=prepared.prompts,
        processing_class=tokenizer,
    )
    return train_and_save(trainer, prepared, context)
