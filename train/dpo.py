"""Direct preference optimisation (Rafailov et al. 2023) with every loss of TRL, against precomputed reference
log-probabilities.

    accelerate launch -m posttrain.train.dpo inputs.model=DIR inputs.data=DIR inputs.reference=DIR output=DIR beta=0.1
"""

from __future__ import annotations

from functools import partial
from typing import Any

import trl
from trl.trainer.dpo_trainer import DataCollatorForPreference

from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.dpo import DpoConfig
from posttrain.train.engine.arguments import training_arguments
from posttrain.train.engine.first_step import require_fused_log_probs
from posttrain.train.engine.fit import fit, plan_steps, save_model
from posttrain.train.engine.opening import announce, begin, describe_rows, estimated_memory
from posttrain.train.engine.trainer import StageTrainer
from posttrain.train.nets.fused_head import fused_on_cpu
from posttrain.train.nets.policy import trainable_policy, wants_mask
from posttrain.train.rows.collate import collate_pairs
from posttrain.train.rows.dataset import pair_dataset, read_groups
from posttrain.train.rows.references import read_reference, require_reference


class DpoTrainer(StageTrainer, trl.DPOTrainer):
    """TRL's trainer and losses; the reference log-probabilities come with the rows."""

    def __init__(self, **theirs: Any) -> None:
        """``theirs`` are the arguments of `StageTrainer`."""
        super().__init__(**theirs)
        if not self.use_weighting:  # its weights need sums of squared probabilities
            fused_on_cpu(self.model, mean_logits=True)

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check that the fused output layer is the model's own."""
        require_fused_log_probs(model, inputs["input_ids"], "train.dpo")

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset


def run(config: DpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the preference pairs of ``inputs.data`` and write the model."""
    tokenizer = begin(context, "comparison")
    source, data, reference = (context.inputs[name] for name in ("model", "data", "reference"))
    require_reference(reference, source, data)
    rows, held_out = (
        pair_dataset(read_groups(data, split), read_reference(reference, split), config.pairs)
        for split in ("train", "eval")
    )
    distributed = context.spec.distributed
    plan = plan_steps(config, len(rows), distributed.num_processes)
    arguments = dpo_arguments(config, training_arguments(config, plan, context))
    policy = trainable_policy(source, config.adapter, config.dtype, config.attention, distributed, "train.dpo")
    trainer = DpoTrainer(
        plan=plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        args=arguments,
        data_collator=partial(
            collate_pairs,
            collate=DataCollatorForPreference(tokenizer.pad_token_id),
            with_mask=wants_mask(policy),
        ),
        train_dataset=rows,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
    )
    memory = estimated_memory(config, context, plan, 2 * max(rows["length"]), "lm")
    announce(plan, "pairs", describe_rows(plan, sum(rows["length"])), policy, memory)
    metrics = fit(trainer, context, memory)
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer)
    accuracy = metrics.get("eval_rewards/accuracies")
    return StageResult(metrics, f"eval accuracy {accuracy:.3f}" if accuracy is not None else "", int(metrics["tokens"]))


def dpo_arguments(config: DpoConfig, common: dict[str, Any]) -> trl.DPOConfig:
    """Return TRL's configuration of the loss."""
    return trl.DPOConfig(
        **common,
        beta=config.beta,
        loss_type=list(config.loss),
        loss_weights=config.loss_weights,
        label_smoothing=config.label_smoothing,
        precompute_ref_log_probs=True,
        max_length=None,
        **config.loss_options,
    )


if __name__ == "__main__":
    stage_main(run, DpoConfig, kind="model")
