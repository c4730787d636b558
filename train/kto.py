"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024) of unpaired preferences, against precomputed reference
log-probabilities.

    accelerate launch -m posttrain.train.kto inputs.model=DIR inputs.data=DIR inputs.reference=DIR output=DIR beta=0.1
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from peft import PeftModel
from transformers import TrainingArguments

from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.train.config.kto import KtoConfig
from posttrain.train.engine.arguments import training_arguments
from posttrain.train.engine.fit import by_config, fit, plan_steps, save_model
from posttrain.train.engine.opening import announce, begin, describe_rows, estimated_memory
from posttrain.train.maths.unpaired_loss import LEAST_RATIO, MOST_RATIO, unpaired_loss, weight_ratio
from posttrain.train.methods.kto_trainer import KtoTrainer
from posttrain.train.nets.fused_head import with_fused_head
from posttrain.train.nets.policy import trainable_policy, wants_mask
from posttrain.train.rows.collate import collate_unpaired
from posttrain.train.rows.columns import Lists, lengths_of, numbers_of
from posttrain.train.rows.dataset import fill_up
from posttrain.train.rows.references import read_reference, require_reference
from posttrain.train.rows.unpaired import read_unpaired, with_reference

log = logging.getLogger(__name__)


def run(config: KtoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the unpaired preferences of ``inputs.data`` and write the model."""
    tokenizer = begin(context, "unpaired")
    source, data, reference = (context.inputs[name] for name in ("model", "data", "reference"))
    require_reference(reference, source, data)
    rows, held_out = (
        with_reference(read_unpaired(data, split), read_reference(reference, split)) for split in ("train", "eval")
    )
    distributed = context.spec.distributed
    plan = plan_steps(config, len(rows), distributed.num_processes, len(held_out), "train.kto")
    plan = by_config(plan, config, rows, context.spec.seed)
    require_mismatches(Lists(rows.data.column("prompt_ids")), config.global_batch_size)
    desirable = int(numbers_of(rows, "label").sum())
    labels = {"desirable": desirable, "undesirable": len(rows) - desirable}
    warning = imbalance(
        **labels, desirable_weight=config.desirable_weight, undesirable_weight=config.undesirable_weight
    )
    if warning:
        log.warning(warning)
    policy = trainable_policy(source, config.adapter, config.dtype, config.attention, distributed, "train.kto")
    with_fused_head(policy, "train.kto")
    if config.gradient_checkpointing and isinstance(policy, PeftModel):
        policy.enable_input_require_grads()
    trainer = KtoTrainer(
        loss=partial(
            unpaired_loss,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        ),
        beta=config.beta,
        plan=plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        args=TrainingArguments(**training_arguments(config, plan, context), label_names=[]),
        data_collator=partial(collate_unpaired, pad_token_id=tokenizer.pad_token_id, with_mask=wants_mask(policy)),
        train_dataset=rows,
        eval_dataset=fill_up(held_out, plan.evaluation_multiple) if len(held_out) else None,
        processing_class=tokenizer,
    )
    tokens = int(lengths_of(rows).sum())
    memory = estimated_memory(config, context, plan, int(lengths_of(rows).max()), "lm")
    announce(plan, "rows", describe_rows(plan, tokens), policy, memory)
    metrics = fit(trainer, context, config, memory)
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer, config.save_dtype)
    margin = metrics.get("eval_rewards/margins")
    said = [f"eval margin {margin:.3f}"] if margin is not None else []
    said += ["labels out of balance (see its log)"] if warning else []
    return StageResult(metrics, "; ".join(said), int(metrics["tokens"]), facts={"labels": labels})


def require_mismatches(prompts: Sequence[Sequence[int]] | Lists, global_batch_size: int) -> None:
    """Raise UsageError where the reference point could not be told from the reward of the rows themselves."""
    if all(list(prompts[row]) == list(prompts[0]) for row in range(len(prompts))):
        raise UsageError(
            "train.kto: all training rows have one prompt, but the reference point is measured on responses to other "
            "prompts; add rows, or use train.sft"
        )
    if global_batch_size < 2:
        raise UsageError("train.kto.global_batch_size=1: the reference point is a mean over a batch; use 2 or more")


def imbalance(desirable: int, undesirable: int, desirable_weight: float, undesirable_weight: float) -> str:
    """Return what is wrong with so many rows of each label under their weights; empty where nothing is."""
    if not desirable or not undesirable:
        what = "desirable" if desirable else "undesirable"
        return f"all {desirable + undesirable} training rows are {what}: there is nothing to tell apart"
    ratio = weight_ratio(desirable, undesirable, desirable_weight, undesirable_weight)
    if LEAST_RATIO - 1e-6 <= ratio <= MOST_RATIO + 1e-6:
        return ""
    low, high = (bound * undesirable * undesirable_weight / desirable for bound in (LEAST_RATIO, MOST_RATIO))
    other_low, other_high = (desirable * desirable_weight / undesirable / bound for bound in (MOST_RATIO, LEAST_RATIO))
    return (
        f"{desirable} desirable and {undesirable} undesirable rows: the weight of the former is {ratio:.3g} times that "
        f"of the latter, outside of 1 to 4/3; set desirable_weight between {low:.3g} and {high:.3g}, or "
        f"undesirable_weight between {other_low:.3g} and {other_high:.3g}"
    )


if __name__ == "__main__":
    stage_main(run, KtoConfig, kind="model")
