"""What the stages of RLOO and GRPO have in common; what differs between them is a `Method`."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from typing import Any

from peft import PeftModel

from posttrain.data.chat import load_tokenizer
from posttrain.sample.models import load_policy
from posttrain.stage.entry import Context, StageResult
from posttrain.train.adapters import make_trainable, weights_dtype, without_attention_dropout
from posttrain.train.arguments import training_arguments
from posttrain.train.batching import BatchPlan
from posttrain.train.dataset import Row, read_prompts, require_tokens
from posttrain.train.fit import fit, save_model
from posttrain.train.group_config import GroupConfig
from posttrain.train.group_episodes import Advantages
from posttrain.train.group_trainer import GroupTrainer
from posttrain.train.phase_plan import announce, plan_phases, require_room
from posttrain.train.phases import keep_samples
from posttrain.train.processes import device, join, loaded_whole, zero_stage
from posttrain.train.reference_model import reference_of
from posttrain.train.reward_terms import build_rewards, require_references
from posttrain.train.rollout import RolloutWorker
from posttrain.train.whole_copy import whole_copy

log = logging.getLogger(__name__)


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
    join(context)
    source = context.inputs["model"]
    tokenizer = load_tokenizer(source)
    require_tokens(context.inputs["data"], "prompt", tokenizer)
    prompts: Any = read_prompts(context.inputs["data"], "train")
    rows: list[Row] = list(prompts)
    plan = plan_phases(config, config.num_iterations, len(rows), context)
    require_room(rows, config.max_new_tokens, source)
    require_references(config.rewards, rows, method.where)
    reference = reference_of(source, config, device()) if config.beta else None
    rewards = build_rewards(
        config.rewards, context.inputs.get("reward"), tokenizer, device(), config.scoring_tokens, method.where
    )
    arguments = method.arguments(
        **training_arguments(config, plan, context), **group_arguments(config, plan), **method.loss_arguments
    )
    copy = whole_copy(partial(trainable_policy, config, context, method.where), config.dtype, context.spec.distributed)
    policy = trainable_policy(config, context, method.where)
    build: Any = method.trainer
    trainer = build(
        model=policy,
        reward_funcs=_scored_already,
        args=arguments,
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    if isinstance(policy, PeftModel) and "ref" in policy.peft_config:
        policy.delete_adapter("ref")  # TRL's frozen copy of the adapter; ours is `reference`
    trainer.attach(plan, context, config.keep_checkpoints)
    worker = RolloutWorker(
        config,
        tokenizer,
        rows,
        reference.for_policy(copy or policy) if reference else None,
        rewards,
        context.spec.seed,
        arguments.process_index,
        plan.world_size,
        context.work / "samples.jsonl",
    )
    in_reward, in_loss = (config.beta, 0.0) if method.kl_in_reward else (0.0, config.beta)
    trainer.beta = in_loss  # given to the constructor, it would have TRL load a reference of its own
    trainer.prepare(config, worker, method.advantages, in_reward, tokenizer.pad_token_id, method.where, copy)
    announce(plan, config, config.num_iterations, len(rows))
    return finish(trainer, context, tokenizer, reference)


def _scored_already(**_: Any) -> list[float]:
    """Stand where TRL wants a reward; rollouts are scored before it sees them."""
    raise AssertionError("TRL was not to score")


def finish(trainer: GroupTrainer, context: Context, tokenizer: Any, reference: Any) -> StageResult:
    """Train to the last step, write the policy, and return the stage's result."""
    metrics = fit(trainer, context)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if reference is not None:
        reference.release(policy)
    save_model(policy, context, tokenizer)
    if context.main_process:
        keep_samples(trainer.worker.samples, context.output)
    last = trainer.last_rollout
    headline = f"reward {last['objective/scores']:.3f}"
    if "objective/kl" in last:
        headline += f", KL {last['objective/kl']:.2f}"
    return StageResult({**metrics, **last}, headline, int(metrics["tokens"]))


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


@loaded_whole()
def trainable_policy(config: GroupConfig, context: Context, where: str) -> Any:
    """Return the policy, ready to train."""
    source, dtype = context.inputs["model"], weights_dtype(config)
    four_bit = config.adapter.kind == "qlora"
    policy = load_policy(source, dtype, config.attention, trainable_adapter=True, four_bit=four_bit)
    zero3 = zero_stage(context.spec.distributed) == 3
    return without_attention_dropout(make_trainable(policy, config.adapter, where, one_dtype=zero3))
