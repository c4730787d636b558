"""Pairwise reward model on K-ranked groups.

    accelerate launch -m posttrain.train.reward inputs.model=DIR inputs.data=DIR output=DIR optimizer.learning_rate=1e-5

R responses of a micro-batch, P pairs among them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import trl
from torch import Tensor

from posttrain.data.chat import load_tokenizer
from posttrain.sample.models import is_adapter
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.arguments import training_arguments
from posttrain.train.collate import collate_groups
from posttrain.train.config import RewardConfig
from posttrain.train.dataset import fill_up, read_groups, require_tokens
from posttrain.train.fit import announce, fit, plan_steps, save_model
from posttrain.train.losses import pairwise_ranking_loss
from posttrain.train.processes import join, loaded_whole, zero_stage
from posttrain.train.reward_model import classifier_from_policy, reward_statistics
from posttrain.train.trainer import StageTrainer


class RewardTrainer(StageTrainer, trl.RewardTrainer):
    """TRL's trainer with whole groups for rows: each response is read once, however many pairs it is in."""

    margin_per_rank: float
    centering_coefficient: float

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Return the pairwise loss of a micro-batch of groups, and count pair accuracy and margin."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
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
        if mode == "eval":
            self.sums.add(mode, "loss", loss * groups, groups)
        self.sums.add(mode, "accuracy", (gap_P > 0).sum(), gap_P.numel())
        self.sums.add(mode, "margin", gap_P.sum(), gap_P.numel())
        self.sums.add(mode, "mean_reward", (rewards_R * counted_R).sum(), inputs["num_responses"])
        return (loss, outputs) if return_outputs else loss


def run(config: RewardConfig, context: Context) -> StageResult:
    """Train a reward model from ``inputs.model`` on the ranked groups of ``inputs.data`` and write it."""
    join(context)
    source = context.inputs["model"]
    tokenizer = load_tokenizer(source)
    require_tokens(context.inputs["data"], "comparison", tokenizer)
    rows, held_out = (read_groups(context.inputs["data"], split) for split in ("train", "eval"))
    plan = plan_steps(config, len(rows), context)
    arguments = trl.RewardConfig(**training_arguments(config, plan, context), max_length=None)
    zero3 = zero_stage(context.spec.distributed) == 3
    with loaded_whole(is_adapter(source)):
        model = classifier_from_policy(source, config, tokenizer.pad_token_id, context.spec.seed, one_dtype=zero3)
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        data_collator=partial(collate_groups, pad_token_id=tokenizer.pad_token_id),
        train_dataset=rows,
        eval_dataset=fill_up(held_out, plan.evaluation_multiple) if len(held_out) else None,
        processing_class=tokenizer,
    )
    trainer.margin_per_rank = config.margin_per_rank
    trainer.centering_coefficient = config.centering_coefficient
    trainer.attach(plan, context, config.keep_checkpoints)
    announce(trainer, config, context, sequences_per_row=max(map(len, rows["ranks"])), head="score")
    metrics = fit(trainer, context)
    mean, std = reward_statistics(trainer)
    trainer.model.config.reward_mean, trainer.model.config.reward_std = mean, std
    facts = {"reward_mean": mean, "reward_std": std, "pad_token_id": tokenizer.pad_token_id}
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer, extra=facts)
    headline = f"eval accuracy {metrics['eval_accuracy']:.3f}" if "eval_accuracy" in metrics else ""
    return StageResult(metrics, headline, int(metrics["tokens"]), facts=facts)


if __name__ == "__main__":
    stage_main(run, RewardConfig, kind="reward_model")
