"""Proximal policy optimisation (Schulman et al. 2017) of a language model's responses.

accelerate launch -m posttrain.train.ppo inputs.model=DIR inputs.data=DIR inputs.reward=DIR output=DIR kl.coef=0.05
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from posttrain.data.chat import load_tokenizer, tokenizer_digest
from posttrain.sample.models import load_policy, load_reward_model
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.train.actor_critic import ActorCritic, Critic, critic_from_reward_model, fresh_head
from posttrain.train.adapters import make_trainable, merged, weights_dtype, without_attention_dropout
from posttrain.train.arguments import training_arguments
from posttrain.train.dataset import Row, read_prompts, require_tokens
from posttrain.train.fit import fit, save_model
from posttrain.train.phase_plan import announce, plan_phases, require_room
from posttrain.train.phases import keep_samples
from posttrain.train.policy_server import PolicyServer
from posttrain.train.ppo_config import PpoConfig
from posttrain.train.ppo_trainer import PpoTrainer
from posttrain.train.processes import device, join, loaded_whole, zero_stage
from posttrain.train.reference_model import reference_of
from posttrain.train.reward_model_score import reward_tokenizer
from posttrain.train.reward_terms import build_rewards, require_references
from posttrain.train.rollout import RolloutWorker
from posttrain.train.token_log_probs import backbone_and_head
from posttrain.train.whole_copy import whole_copy

log = logging.getLogger(__name__)


def run(config: PpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    join(context)
    source = context.inputs["model"]
    tokenizer = load_tokenizer(source)
    require_tokens(context.inputs["data"], "prompt", tokenizer)
    prompts: Any = read_prompts(context.inputs["data"], "train")
    rows: list[Row] = list(prompts)
    plan = plan_phases(config, config.ppo_epochs, len(rows), context)
    require_room(rows, config.max_new_tokens, source)
    require_references(config.rewards, rows, "train.ppo")
    require_critic(config, context, tokenizer)
    reference = reference_of(source, config, device())
    rewards = build_rewards(
        config.rewards, context.inputs.get("reward"), tokenizer, device(), config.scoring_tokens, "train.ppo"
    )
    arguments = TrainingArguments(**training_arguments(config, plan, context), ignore_data_skip=True)
    copy = whole_copy(partial(actor_critic, config, context), config.dtype, context.spec.distributed)
    model = actor_critic(config, context)
    trainer = PpoTrainer(model=model, args=arguments, train_dataset=prompts, processing_class=tokenizer)
    trainer.attach(plan, context, config.keep_checkpoints)
    worker = RolloutWorker(
        config,
        tokenizer,
        rows,
        reference.for_policy((copy or model).policy),
        rewards,
        context.spec.seed,
        arguments.process_index,
        plan.world_size,
        context.work / "samples.jsonl",
        policy_server(config, context, tokenizer),
    )
    trainer.prepare(config, worker, tokenizer.pad_token_id, copy)
    announce(plan, config, config.ppo_epochs, len(rows))
    metrics = fit(trainer, context)
    policy = trainer.accelerator.unwrap_model(trainer.model).policy
    reference.release(policy)
    save_model(policy, context, tokenizer)
    if context.main_process:
        keep_samples(worker.samples, context.output)
    last = trainer.last_rollout
    headline = f"reward {last['objective/scores']:.3f}, KL {last['objective/kl']:.2f}" if last else ""
    return StageResult({**metrics, **last}, headline, int(metrics["tokens"]))


def policy_server(config: PpoConfig, context: Context, tokenizer: PreTrainedTokenizerBase) -> PolicyServer | None:
    """Return the server that samples, if one does."""
    if config.backend != "vllm":
        return None
    return PolicyServer(config.server, tokenizer, context.work / "served", context.main_process)


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


@loaded_whole()
def actor_critic(config: PpoConfig, context: Context) -> ActorCritic:
    """Return the policy with its critic, ready to train."""
    source = context.inputs["model"]
    four_bit = config.adapter.kind == "qlora"
    dtype = weights_dtype(config)
    policy = load_policy(source, dtype, config.attention, trainable_adapter=True, four_bit=four_bit)
    zero3 = zero_stage(context.spec.distributed) == 3
    policy = without_dropout(make_trainable(policy, config.adapter, "train.ppo", one_dtype=zero3))
    if config.critic.kind == "shared":
        return ActorCritic(policy, Critic(None, fresh_head(policy)))
    if config.critic.kind == "policy":
        copy = without_dropout(load_policy(source, "float32", config.attention))
        return ActorCritic(policy, Critic(backbone_and_head(merged(copy))[0], fresh_head(policy)))
    reward_model = without_dropout(merged(load_reward_model(context.inputs["reward"])))
    return ActorCritic(policy, critic_from_reward_model(reward_model))


def without_dropout(model: Any) -> Any:
    """Return the model with all dropout off: a ratio of probabilities is of the policies, not of two masks."""
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return without_attention_dropout(model)


if __name__ == "__main__":
    stage_main(run, PpoConfig, kind="model")
