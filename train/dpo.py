"""Direct preference optimisation (Rafailov et al. 2023) with every loss of TRL, against precomputed reference
log-probabilities.

    accelerate launch -m posttrain.train.dpo inputs.model=DIR inputs.data=DIR inputs.reference=DIR output=DIR beta=0.1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import trl
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from posttrain.models.shared_prompts import along_tree
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.dpo import DpoConfig
from posttrain.train.engine.arguments import training_arguments
from posttrain.train.engine.first_step import require_fused_log_probs, require_shared_log_probs
from posttrain.train.engine.fit import fit, plan_steps, save_model
from posttrain.train.engine.opening import announce, begin, describe_rows, estimated_memory
from posttrain.train.engine.trainer import StageTrainer
from posttrain.train.nets.fused_head import fused_on_cpu
from posttrain.train.nets.policy import trainable_policy, wants_mask
from posttrain.train.nets.sharing import made_to_share
from posttrain.train.rows.collate import Batch, collate_pairs, collate_shared_pairs
from posttrain.train.rows.dataset import Row, pair_dataset, read_groups, shared_pair_lengths
from posttrain.train.rows.references import read_reference, require_reference


class DpoTrainer(StageTrainer, trl.DPOTrainer):
    """TRL's trainer and losses; the reference log-probabilities come with the rows."""

    def __init__(self, *, share: bool, **theirs: Any) -> None:
        """``theirs`` are the arguments of `StageTrainer`; ``share`` says whether prompts may be computed once."""
        super().__init__(**theirs)
        if not self.use_weighting:  # its weights need sums of squared probabilities
            fused_on_cpu(self.model, mean_logits=True, share=share)

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check that the fused output layer is the model's own, and that responses which share a prompt keep apart."""
        if "groups" in inputs:
            row = inputs["row_ids"], inputs["row_labels"], inputs["groups"]
            require_shared_log_probs(model, row, partial(scores_of_row, model, inputs), "train.dpo", self.args.bf16)
        require_fused_log_probs(model, inputs["input_ids"], "train.dpo")

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Return TRL's loss; where prompts are shared, of scores that were computed along the tree."""
        if "groups" not in inputs:
            return super()._compute_loss(model, inputs, return_outputs)
        theirs = {name: part for name, part in inputs.items() if name not in _OF_THE_ROW}
        return super()._compute_loss(partial(scores_of_responses, model, inputs), theirs, return_outputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset


_OF_THE_ROW = ("row_ids", "row_labels", "groups", "place")


def scores_of_row(model: Any, inputs: dict[str, Any]) -> Any:
    """Return what the fused output layer gives for every token but the first of a row of shared prompts."""
    told = along_tree(getattr(model, "module", model), inputs["groups"], inputs["row_ids"].device)
    labels_1T = inputs["row_labels"]
    return model(input_ids=inputs["row_ids"], labels=labels_1T, use_cache=False, fused_lm_head=True, **told)


def scores_of_responses(model: Any, inputs: dict[str, Any], **_: Any) -> FusedCausalLMOutput:
    """Return the scores of `collate_shared_pairs`'s responses in TRL's layout ``BT``: nought where one has no token.

    It stands for the model in TRL's loss, whose own arguments it does not need.
    """
    outputs, trained_BT = scores_of_row(model, inputs), inputs["completion_mask"][:, 1:].bool()
    of_responses = {}
    for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
        scores_1T = getattr(outputs, name)
        if scores_1T is not None:
            of_responses[name] = scores_1T[0][inputs["place"]].masked_fill(~trained_BT, 0)
    return FusedCausalLMOutput(**of_responses)


def run(config: DpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the preference pairs of ``inputs.data`` and write the model."""
    tokenizer = begin(context, "comparison")
    source, data, reference = (context.inputs[name] for name in ("model", "data", "reference"))
    require_reference(reference, source, data)
    rows, held_out = (
        pair_dataset(read_groups(data, split), read_reference(reference, split), config.pairs)
        for split in ("train", "eval")
    )
    distributed, pad = context.spec.distributed, tokenizer.pad_token_id
    plan = plan_steps(config, len(rows), distributed.num_processes)
    arguments = dpo_arguments(config, training_arguments(config, plan, context))
    policy = trainable_policy(source, config.adapter, config.dtype, config.attention, distributed, "train.dpo")
    if shared := made_to_share(policy, config.share_prompts, config.attention, "train.dpo"):
        collate: Callable[[list[Row]], Batch] = partial(collate_shared_pairs, pad_token_id=pad)
        rows, plan = shared_pair_lengths(rows), dataclasses.replace(plan, balanced=True)
    else:
        padded = DataCollatorForPreference(pad)
        collate = partial(collate_pairs, collate=padded, with_mask=wants_mask(policy))
    trainer = DpoTrainer(
        share=config.share_prompts != "never",
        plan=plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
    )
    memory = estimated_memory(config, context, plan, (1 if shared else 2) * max(rows["length"]), "lm")
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
