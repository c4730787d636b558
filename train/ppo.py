"""Proximal policy optimisation (Schulman et al. 2017) of a language model's responses.

accelerate launch -m posttrain.train.ppo inputs.model=DIR inputs.data=DIR inputs.reward=DIR output=DIR kl.coef=0.05
"""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedTokenizerBase, TrainingArguments

from posttrain.data.chat.tokenizer import tokenizer_digest
from posttrain.models.adapters import merged, without_dropout
from posttrain.models.load import load_policy, load_reward_model
from posttrain.models.token_log_probs import backbone_and_head, head_gives_logits
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.train.config.ppo import PpoConfig
from posttrain.train.engine.opening import begin
from posttrain.train.methods.ppo_trainer import PpoTrainer
from posttrain.train.nets.actor_critic import ActorCritic, Critic, critic_from_reward_model, fresh_head
from posttrain.train.nets.policy import loaded_whole, trainable_policy
from posttrain.train.rewards.model_score import reward_tokenizer
from posttrain.train.rollouts.opening import collector_of, prepare, train_and_save
from posttrain.train.rollouts.server import PolicyServer
from posttrain.train.rollouts.whole_copy import whole_copy


def run(config: PpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the prompts of ``inputs.data`` and write the policy."""
    tokenizer = begin(context, "prompt")
    require_critic(config.critic.kind, context, tokenizer)
    prepared = prepare(config, context, tokenizer, config.ppo_epochs, "train.ppo")
    arguments = TrainingArguments(**prepared.arguments, ignore_data_skip=True)
    copy = whole_copy(partial(actor_critic, config, context), config.dtype, context.spec.distributed)
    model = actor_critic(config, context)
    processed = config.server_logprobs == "processed"
    server = policy_server(config.server, processed, context, tokenizer) if config.backend == "vllm" else None
    collector = collector_of(
        prepared, config, (copy or model).policy, context.spec.seed, arguments.process_index, server
    )
    trainer = PpoTrainer(
        config=config,
        collector=collector,
        samples=prepared.samples,
        pad_token_id=tokenizer.pad_token_id,
        copy=copy,
        plan=prepared.plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=model,
        args=arguments,
        train_dataset=prepared.prompts,
        processing_class=tokenizer,
    )
    return train_and_save(trainer, prepared, context)


def policy_server(
    url: str, processed_logprobs: bool, context: Context, tokenizer: PreTrainedTokenizerBase
) -> PolicyServer:
    """Return the server that samples in the stage's place."""
    return PolicyServer(url, tokenizer, context.work / "served", context.main_process, processed_logprobs)


def require_critic(kind: str, context: Context, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError when the critic is to start from a reward model that is not there, or reads other tokens."""
    if kind != "reward_model":
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
    """Return the policy with its critic, ready to train, loaded whole also under ZeRO-3."""
    source, distributed = context.inputs["model"], context.spec.distributed
    policy = trainable_policy(
        source, config.adapter, config.dtype, config.attention, distributed, "train.ppo", whole=True
    )
    if not head_gives_logits(policy):
        raise UsageError(
            f"train.ppo: the logits of {policy.config.model_type} are more than its output layer's product, which the "
            "log-probabilities here do not know; use train.rloo or train.grpo, which take the model's own logits"
        )
    if config.critic.kind == "shared":
        return ActorCritic(policy, Critic(None, fresh_head(policy)))
    with loaded_whole():
        if config.critic.kind == "policy":
            copy = without_dropout(load_policy(source, "float32", config.attention))
            return ActorCritic(policy, Critic(backbone_and_head(merged(copy))[0], fresh_head(policy)))
        reward_model = without_dropout(merged(load_reward_model(context.inputs["reward"])))
        return ActorCritic(policy, critic_from_reward_model(reward_model))


if __name__ == "__main__":
    stage_main(run, PpoConfig, kind="model")
