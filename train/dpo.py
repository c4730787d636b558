"""Direct preference optimisation (Rafailov et al. 2023) with every loss that TRL has, against precomputed reference
log-probabilities.

    accelerate launch -m posttrain.train.dpo inputs.model=DIR inputs.data=DIR inputs.reference=DIR output=DIR beta=0.1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.train.config.common import Sharing
from posttrain.train.config.dpo import DpoConfig
from posttrain.train.engine.arguments import lay_out, training_arguments
from posttrain.train.engine.fit import by_config, fit, plan_steps, save_model
from posttrain.train.engine.opening import announce, begin, describe_rows, estimated_memory
from posttrain.train.maths.pair_losses import PairOptions
from posttrain.train.methods.dpo_trainer import DpoTrainer
from posttrain.train.nets.fused_head import with_fused_head
from posttrain.train.nets.policy import balance_coefficient, trainable_policy, wants_mask
from posttrain.train.nets.sharing import made_to_share
from posttrain.train.rows.collate import Batch, collate_pairs, collate_shared_pairs
from posttrain.train.rows.columns import lengths_of
from posttrain.train.rows.dataset import Row, fill_up, pair_dataset, read_groups, shared_pair_lengths
from posttrain.train.rows.references import read_reference, require_reference


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
    plan = plan_steps(config, len(rows), distributed.num_processes, len(held_out), "train.dpo")
    arguments = TrainingArguments(**training_arguments(config, plan, context), label_names=[])
    policy = trainable_policy(source, config.adapter, config.dtype, config.attention, distributed, "train.dpo")
    sharing = sharing_beside_experts(policy, config.share_prompts)
    if shared := made_to_share(policy, sharing, config.attention, "train.dpo"):
        collate: Callable[[list[Row]], Batch] = partial(collate_shared_pairs, pad_token_id=pad)
        rows, plan = shared_pair_lengths(rows), dataclasses.replace(plan, balanced=True)
    else:
        collate = partial(
            collate_pairs, pad_token_id=pad, with_mask=wants_mask(policy) or balance_coefficient(policy) > 0
        )
    plan = by_config(plan, config, rows, context.spec.seed, None if shared else 2)
    lay_out(arguments, plan)
    options = config.options()
    weighted = bool(options.pop("use_weighting"))
    more = [*(["log_sum_sq_probs"] if weighted else []), "mean_logits", "is_top1"]
    with_fused_head(policy, "train.dpo", *more, share=config.share_prompts != "never")
    if config.gradient_checkpointing and isinstance(policy, PeftModel):
        policy.enable_input_require_grads()
    trainer = DpoTrainer(
        weight_of=config.weight_of(),
        options=PairOptions(config.beta, config.label_smoothing, **options),
        weighted=weighted,
        plan=plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=fill_up(held_out, plan.evaluation_multiple) if len(held_out) else None,
        processing_class=tokenizer,
    )
    tokens = int(lengths_of(rows).sum())
    memory = estimated_memory(config, context, plan, (1 if shared else 2) * int(lengths_of(rows).max()), "lm")
    announce(plan, "pairs", describe_rows(plan, tokens), policy, memory)
    metrics = fit(trainer, context, config, memory)
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer, config.save_dtype)
    accuracy = metrics.get("eval_rewards/accuracies")
    return StageResult(metrics, f"eval accuracy {accuracy:.3f}" if accuracy is not None else "", int(metrics["tokens"]))


def sharing_beside_experts(policy: Any, wanted: Sharing) -> Sharing:
    """Return whether prompts are shared: not by a model whose experts are balanced over the tokens of both responses.

    Raises UsageError where they always should be.
    """
    if balance_coefficient(policy) == 0 or wanted == "never":
        return wanted
    if wanted == "always":
        raise UsageError(
            f"train.dpo.share_prompts=always: {policy.config.model_type} balances its experts, and would count a "
            "shared prompt once; set train.dpo.share_prompts=auto"
        )
    return "never"


if __name__ == "__main__":
    stage_main(run, DpoConfig, kind="model")
