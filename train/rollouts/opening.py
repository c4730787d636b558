"""What the stages that learn from their own responses do alike: before their trainer is built, and when it is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.models.processes import device
from posttrain.sample.sampling import SamplingParams
from posttrain.sample.score import members
from posttrain.stage.entry import Context, StageResult
from posttrain.train.config.rollout import RolloutConfig
from posttrain.train.engine.arguments import training_arguments
from posttrain.train.engine.batching import BatchPlan
from posttrain.train.engine.fit import fit, save_model
from posttrain.train.engine.opening import announce
from posttrain.train.nets.frozen_reference import Reference, reference_of
from posttrain.train.rewards.terms import build_rewards, require_references
from posttrain.train.rewards.weighted import Rewards
from posttrain.train.rollouts.collect import Collector
from posttrain.train.rollouts.memory import estimated_rollouts
from posttrain.train.rollouts.phases import PhaseTrainer
from posttrain.train.rollouts.plan import describe_phases, plan_phases, require_room
from posttrain.train.rollouts.samples import SampleLog
from posttrain.train.rollouts.sampling import Drawing, RolloutSampler
from posttrain.train.rollouts.scoring import EpisodeScorer
from posttrain.train.rollouts.server import PolicyServer
from posttrain.train.rows.columns import lengths_of
from posttrain.train.rows.dataset import read_prompts


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What rollouts need, read and checked."""

    source: Path
    tokenizer: PreTrainedTokenizerBase
    prompts: Any
    """As a dataset."""
    plan: BatchPlan
    arguments: dict[str, Any]
    """What the arguments of all trainers have in common."""
    reference: Reference | None
    rewards: Rewards
    samples: SampleLog


def prepare(
    config: RolloutConfig,
    context: Context,
    tokenizer: PreTrainedTokenizerBase,
    passes: int,
    where: str,
    *,
    with_reference: bool = True,
) -> Prepared:
    """Read the prompts, check that they have what the rewards judge by, and load the frozen models.

    ``passes`` is the number of passes over a rollout, ``where`` the configuration path of the stage. Raises UsageError
    before a model is loaded.
    """
    source = context.inputs["model"]
    prompts: Any = read_prompts(context.inputs["data"], "train")
    plan = plan_phases(config, passes, len(prompts), context.spec.distributed.num_processes)
    require_room(prompts, config.max_new_tokens, source)
    require_references(config.rewards, prompts, where)
    arguments = training_arguments(config, plan, context)
    reference = None
    if with_reference:
        reference = reference_of(
            source, config.adapter.kind, config.dtype, config.attention, device(), context.spec.distributed
        )
    rewards = build_rewards(
        config.rewards,
        members(context.inputs, "reward"),
        tokenizer,
        device(),
        config.scoring_tokens,
        where,
        config.dtype,
        context.inputs.get("verifier"),
        context.spec.distributed,
    )
    samples = SampleLog(context.work / "samples.jsonl", prompts, config.sample_rows, context.main_process)
    return Prepared(source, tokenizer, prompts, plan, arguments, reference, rewards, samples)


def collector_of(
    prepared: Prepared, config: RolloutConfig, policy: Any, seed: int, rank: int, server: PolicyServer | None = None
) -> Collector:
    """Return what makes the rollouts of this rank; ``policy`` is the model that it samples from."""
    params = SamplingParams(
        max_tokens=config.max_new_tokens, temperature=config.temperature, num_samples=config.samples_per_prompt
    )
    per_rollout = config.rollout_batch_size // config.samples_per_prompt
    drawing = Drawing(per_rollout, params, config.rollout_batch, seed, rank, prepared.plan.world_size)
    scorer = EpisodeScorer(
        prompts=prepared.prompts,
        rewards=prepared.rewards,
        reference=prepared.reference.for_policy(policy) if prepared.reference is not None else None,
        temperature=config.temperature,
        scoring_tokens=config.scoring_tokens,
        missing_eos_penalty=config.missing_eos_penalty,
        reference_is_policy=prepared.reference is not None and prepared.reference.model is None,
    )
    return Collector(RolloutSampler(prepared.tokenizer, prepared.prompts, drawing, server), scorer)


def train_and_save(trainer: PhaseTrainer, prepared: Prepared, context: Context) -> StageResult:
    """Train to the last step, write the policy, and return the stage's result."""
    config = trainer.rollouts
    phases = describe_phases(config.rollout_batch_size, config.samples_per_prompt, config.mini_batches, trainer.passes)
    longest = int(lengths_of(prepared.prompts).max())
    memory = estimated_rollouts(config, context, trainer.plan, longest, prepared.reference is not None)
    announce(trainer.plan, "responses", f"{len(prepared.prompts):,} prompts in {phases}", trainer.model, memory)
    metrics = fit(trainer, context, config, memory)
    policy = trainer.trained_policy()
    if prepared.reference is not None:
        prepared.reference.release(policy)
    save_model(policy, context, prepared.tokenizer, config.save_dtype)
    trainer.samples.keep(context.output)
    last = trainer.last_rollout
    headline = f"reward {last['objective/scores']:.3f}" if last else ""
    if "objective/kl" in last:
        headline += f", KL {last['objective/kl']:.2f}"
    return StageResult({**metrics, **last}, headline, int(metrics["tokens"]))
