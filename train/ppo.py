"""Proximal policy optimisation (Schulman et al. 2017) of a language model's responses.

accelerate launch -m posttrain.train.ppo inputs.model=DIR inputs.data=DIR inputs.reward=DIR output=DIR kl.coef=0.05
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase, TrainingArguments

from posttrain.data.chat import load_tokenizer, tokenizer_digest
from posttrain.sample.models import backbone_directory, load_policy, load_reward_model, trusts_remote_code
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.train.actor_critic import ActorCritic, Critic, critic_from_reward_model, fresh_head
from posttrain.train.adapters import make_trainable, weights_dtype, without_attention_dropout
from posttrain.train.arguments import training_arguments
from posttrain.train.batching import BatchPlan, plan_batches
from posttrain.train.dataset import Row, read_prompts, require_tokens
from posttrain.train.fit import fit, save_model
from posttrain.train.ppo_config import PpoConfig
from posttrain.train.ppo_trainer import PpoTrainer
from posttrain.train.processes import device, join
from posttrain.train.reference_model import reference_of
from posttrain.train.reward_model_score import reward_tokenizer
from posttrain.train.reward_terms import build_rewards, require_references
from posttrain.train.rollout import RolloutWorker
from posttrain.train.token_log_probs import backbone_and_head

log = logging.getLogger(__name__)


def run(config: PpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    join(context)
    source = context.inputs["model"]
    tokenizer = load_tokenizer(source)
    require_tokens(context.inputs["data"], "prompt", tokenizer)
    prompts: Any = read_prompts(context.inputs["data"], "train")
    rows: list[Row] = list(prompts)
    plan = plan_phases(config, len(rows), context)
    require_room(rows, config.max_new_tokens, source)
    require_references(config.rewards, rows, "train.ppo")
    require_critic(config, context, tokenizer)
    # the frozen models come first: once the arguments ask for ZeRO-3, whatever is loaded is split over the ranks
    reference = reference_of(source, config, device())
    rewards = build_rewards(
        config.rewards, context.inputs.get("reward"), tokenizer, device(), config.scoring_tokens, "train.ppo"
    )
    arguments = TrainingArguments(**training_arguments(config, plan, context), ignore_data_skip=True)
    model = actor_critic(config, context)
    trainer = PpoTrainer(model=model, args=arguments, train_dataset=prompts, processing_class=tokenizer)
    trainer.attach(plan, context, config.keep_checkpoints)
    worker = RolloutWorker(
        config,
        tokenizer,
        rows,
        reference.for_policy(model.policy),
        rewards,
        context.spec.seed,
        arguments.process_index,
        plan.world_size,
        context.work / "samples.jsonl",
    )
    trainer.prepare(config, worker, tokenizer.pad_token_id)
    announce(plan, config, len(rows))
    metrics = fit(trainer, context)
    policy = trainer.accelerator.unwrap_model(trainer.model).policy
    reference.release(policy)
    save_model(policy, context, tokenizer)
    last = trainer.last_rollout
    headline = f"reward {last['objective/scores']:.3f}, KL {last['objective/kl']:.2f}" if last else ""
    return StageResult({**metrics, **last}, headline, int(metrics["tokens"]))


def plan_phases(config: PpoConfig, num_prompts: int, context: Context) -> BatchPlan:
    """Return how the responses of an optimizer step are laid out, and how many steps there are."""
    per_phase = config.ppo_epochs * config.mini_batches
    phases = math.ceil(config.epochs * num_prompts * config.samples_per_prompt / config.rollout_batch_size)
    return plan_batches(
        num_prompts,
        config.global_batch_size,
        config.micro_batch_size,
        context.spec.distributed.num_processes,
        config.epochs,
        config.max_steps if config.max_steps is not None else phases * per_phase,
    )


def require_critic(config: PpoConfig, context: Context, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError when the critic is to start from a reward model that is not there, or reads other tokens."""
    if config.critic.kind != "reward_model":
        return
    reward = context.inputs.get("reward")
    if reward is None:
        raise UsageError("train.ppo.critic.kind: 'reward_model', but there is no inputs.reward; use policy or shared")
    if tokenizer_digest(reward_tokenizer(reward)) != tokenizer_digest(tokenizer):
        raise UsageError(
            f"train.ppo.critic.kind: 'reward_model', but {reward.name} reads other tokens than the policy; "
            "use critic.kind=policy"
        )


def actor_critic(config: PpoConfig, context: Context) -> ActorCritic:
    """Return the policy with its critic, ready to train."""
    source = context.inputs["model"]
    four_bit = config.adapter.kind == "qlora"
    dtype = weights_dtype(config)
    policy = load_policy(source, dtype, config.attention, trainable_adapter=True, four_bit=four_bit)
    policy = without_dropout(make_trainable(policy, config.adapter, "train.ppo"))
    if config.critic.kind == "shared":
        return ActorCritic(policy, Critic(None, fresh_head(policy)))
    if config.critic.kind == "policy":
        copy = without_dropout(load_policy(source, "float32", config.attention))
        merged = copy.merge_and_unload() if hasattr(copy, "peft_config") else copy
        return ActorCritic(policy, Critic(backbone_and_head(merged)[0], fresh_head(policy)))
    reward_model = without_dropout(_merged(load_reward_model(context.inputs["reward"])))
    return ActorCritic(policy, critic_from_reward_model(reward_model))


def _merged(model: Any) -> Any:
    return model.merge_and_unload() if hasattr(model, "peft_config") else model


def without_dropout(model: Any) -> Any:
    """Return the model with all dropout off: a ratio of probabilities is of the policies, not of two masks."""
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return without_attention_dropout(model)


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


def announce(plan: BatchPlan, config: PpoConfig, num_prompts: int) -> None:
    """Print what follows from the configuration."""
    log.info(
        "a rollout of %d responses to %d of %s prompts, then %d passes of %d steps; a step of %d responses = %d rows x "
        "%d processes x %d accumulation; %d steps in all",
        config.rollout_batch_size,
        config.rollout_batch_size // config.samples_per_prompt,
        f"{num_prompts:,}",
        config.ppo_epochs,
        config.mini_batches,
        plan.global_batch_size,
        plan.micro_batch_size,
        plan.world_size,
        plan.accumulation,
        plan.max_steps,
    )


if __name__ == "__main__":
    stage_main(run, PpoConfig, kind="model")
