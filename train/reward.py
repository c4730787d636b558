"""Pairwise reward model on K-ranked groups.

    accelerate launch -m posttrain.train.reward inputs.model=DIR inputs.data=DIR output=DIR optimizer.learning_rate=1e-5

R responses of a micro-batch, P pairs among them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import trl
from torch import Tensor

from posttrain.models.shared_prompts import with_shared_rewards
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.reward import RewardConfig
from posttrain.train.engine.arguments import lay_out, training_arguments
from posttrain.train.engine.first_step import require_shared_rewards
from posttrain.train.engine.fit import by_config, fit, plan_steps, save_model
from posttrain.train.engine.opening import announce, begin, describe_rows, estimated_memory
from posttrain.train.engine.trainer import StageTrainer
from posttrain.train.maths.ranking_loss import pairwise_ranking_loss
from posttrain.train.nets.reward_head import classifier_from_policy
from posttrain.train.nets.sharing import made_to_share
from posttrain.train.rows.collate import Batch, collate_ranked_groups, collate_shared_groups
from posttrain.train.rows.columns import lengths_of, sizes
from posttrain.train.rows.dataset import Row, fill_up, read_groups, shared_lengths

_STATISTICS_GROUPS = 512
"""Groups that the reward's mean and standard deviation are measured on: those of the first steps with so many."""


class RewardTrainer(StageTrainer, trl.RewardTrainer):
    """TRL's trainer with whole groups for rows: each response is read once, however many pairs it is in."""

    def __init__(self, *, margin_per_rank: float, centering_coefficient: float, **theirs: Any) -> None:
        """``theirs`` are the arguments of `StageTrainer`; the others are knobs of the loss."""
        super().__init__(**theirs)
        self.margin_per_rank = margin_per_rank
        self.centering_coefficient = centering_coefficient

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check that responses which share a prompt keep apart."""
        if "groups" in inputs:
            require_shared_rewards(model, inputs["input_ids"], inputs["groups"], "train.reward", self.args.bf16)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Return the pairwise loss of a micro-batch of groups, and count pair accuracy and margin."""
        outputs = rewards_of(model, inputs)
        rewards_R = outputs.logits.squeeze(-1).float()
        better, worse, weight = inputs["better"], inputs["worse"], inputs["weight"]
        groups = inputs["num_groups"]
        counted_R = torch.arange(len(rewards_R), device=rewards_R.device) < inputs["num_responses"]
        loss = pairwise_ranking_loss(
            rewards_R,
            better,
            worse,
            weight,
            inputs["rank_gap"],
            groups.clamp(min=1),
            self.margin_per_rank,
            self.centering_coefficient,
        )
        mode, gap_P = ("train" if model.training else "eval"), (rewards_R[better] - rewards_R[worse]).detach()
        if mode == "train":
            loss = loss * self.plan.weight(groups)
        if mode == "eval":
            self.sums.add(mode, "loss", loss * groups, groups)
        self.sums.add(mode, "accuracy", (gap_P > 0).sum(), gap_P.numel())
        self.sums.add(mode, "margin", gap_P.sum(), gap_P.numel())
        self.sums.add(mode, "mean_reward", (rewards_R * counted_R).sum(), inputs["num_responses"])
        return (loss, outputs) if return_outputs else loss


def run(config: RewardConfig, context: Context) -> StageResult:
    """Train a reward model from ``inputs.model`` on the ranked groups of ``inputs.data`` and write it."""
    tokenizer = begin(context, "comparison")
    rows, held_out = (read_groups(context.inputs["data"], split) for split in ("train", "eval"))
    distributed, pad = context.spec.distributed, tokenizer.pad_token_id
    plan = plan_steps(config, len(rows), distributed.num_processes, len(held_out), "train.reward")
    arguments = trl.RewardConfig(**training_arguments(config, plan, context), max_length=None)
    model = classifier_from_policy(
        context.inputs["model"],
        config.adapter,
        config.dtype,
        config.attention,
        distributed,
        pad,
        context.spec.seed,
    )
    collate: Callable[[list[Row]], Batch] = partial(collate_ranked_groups, pad_token_id=pad)
    if shared := made_to_share(model, config.share_prompts, config.attention, "train.reward"):
        model, collate = with_shared_rewards(model), collate_shared_groups
        rows, held_out, plan = shared_lengths(rows), shared_lengths(held_out), dataclasses.replace(plan, balanced=True)
    plan = by_config(plan, config, rows, context.spec.seed, None if shared else sizes(rows.data.column("ranks")))
    lay_out(arguments, plan)
    trainer = RewardTrainer(
        margin_per_rank=config.margin_per_rank,
        centering_coefficient=config.centering_coefficient,
        plan=plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=fill_up(held_out, plan.evaluation_multiple) if len(held_out) else None,
        processing_class=tokenizer,
    )
    tokens = int(lengths_of(rows).sum())
    longest_row = int(lengths_of(rows).max()) * (1 if shared else int(sizes(rows.data.column("ranks")).max()))
    memory = estimated_memory(config, context, plan, longest_row, "score")
    announce(plan, "groups", describe_rows(plan, tokens), model, memory)
    metrics = fit(trainer, context, config, memory)
    mean, std = reward_statistics(trainer)
    trainer.model.config.reward_mean, trainer.model.config.reward_std = mean, std
    facts = {"reward_mean": mean, "reward_std": std, "pad_token_id": pad}
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer, config.save_dtype, extra=facts)
    headline = f"eval accuracy {metrics['eval_accuracy']:.3f}" if "eval_accuracy" in metrics else ""
    return StageResult(metrics, headline, int(metrics["tokens"]), facts=facts)


def rewards_of(model: Any, inputs: dict[str, Any]) -> Any:
    """Return the classifier's output, whose ``logits`` ``R1`` are the rewards of a micro-batch's responses."""
    shared = {"groups": inputs["groups"]} if "groups" in inputs else {}
    return model(input_ids=inputs["input_ids"], use_cache=False, **shared)


@torch.no_grad()
def reward_statistics(trainer: Any) -> tuple[float, float]:
    """Return mean and standard deviation of the reward over the rows of the first steps, whatever the micro-batches.

    A user of the model subtracts and divides by them, so that rewards of different models are comparable.
    """
    trainer.model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=trainer.args.device)
    batches = math.ceil(_STATISTICS_GROUPS / trainer.plan.global_batch_size) * trainer.plan.accumulation
    for batch in itertools.islice(trainer.get_train_dataloader(), batches):
        inputs = trainer._prepare_inputs(batch)
        rewards_R = rewards_of(trainer.model_wrapped, inputs).logits.squeeze(-1).double()
        sums += torch.stack([torch.ones_like(rewards_R).sum(), rewards_R.sum(), (rewards_R**2).sum()])
    if dist.is_initialized():
        dist.all_reduce(sums)
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5


if __name__ == "__main__":
    stage_main(run, RewardConfig, kind="reward_model")
