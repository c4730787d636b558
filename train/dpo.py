"""Direct preference optimisation (Rafailov et al. 2023) with every loss of TRL, against precomputed reference
log-probabilities.

    accelerate launch -m posttrain.train.dpo inputs.model=DIR inputs.data=DIR inputs.reference=DIR output=DIR beta=0.1
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import trl
from peft import PeftModel
from trl.trainer.dpo_trainer import DataCollatorForPreference

from posttrain.data.chat import load_tokenizer
from posttrain.sample.models import is_adapter, load_policy
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.train.adapters import make_trainable, weights_dtype, without_attention_dropout
from posttrain.train.arguments import training_arguments
from posttrain.train.collate import collate_pairs
from posttrain.train.config import DpoConfig
from posttrain.train.dataset import pair_dataset, read_groups, require_tokens
from posttrain.train.fit import announce, fit, plan_steps, save_model
from posttrain.train.processes import join, loaded_whole, zero_stage
from posttrain.train.trainer import StageTrainer


class DpoTrainer(StageTrainer, trl.DPOTrainer):
    """TRL's trainer and losses; the reference log-probabilities come with the rows."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset


def require_reference(reference: Path, model: Path, data: Path) -> None:
    """Check that reference log-probabilities were made by the policy's starting point, on the same tokens.

    Raises UsageError otherwise.
    """
    parents = read_manifest(reference).parents
    for name, directory in (("model", model), ("data", data)):
        digest = read_manifest(directory).digest
        if parents[name].digest != digest:
            raise UsageError(
                f"inputs.reference: {reference.name} was made from {name} {parents[name].name}, but this stage has "
                f"{directory.name}; make the reference from the same {name}"
            )


def run(config: DpoConfig, context: Context) -> StageResult:
    """Optimise ``inputs.model`` on the preference pairs of ``inputs.data`` and write the model."""
    join(context)
    source, data, reference = (context.inputs[name] for name in ("model", "data", "reference"))
    tokenizer = load_tokenizer(source)
    require_tokens(data, "comparison", tokenizer)
    require_reference(reference, source, data)
    rows, held_out = (
        pair_dataset(read_groups(data, split), pq.read_table(reference / f"{split}.parquet"), config.pairs)
        for split in ("train", "eval")
    )
    plan = plan_steps(config, len(rows), context)
    arguments = dpo_arguments(config, training_arguments(config, plan, context))
    four_bit = config.adapter.kind == "qlora"
    zero3 = zero_stage(context.spec.distributed) == 3
    with loaded_whole(is_adapter(source)):
        policy = load_policy(source, weights_dtype(config), config.attention, trainable_adapter=True, four_bit=four_bit)
        policy = make_trainable(policy, config.adapter, "train.dpo", one_dtype=zero3)
    policy = without_attention_dropout(policy)
    trainer = DpoTrainer(
        model=policy,
        args=arguments,
        data_collator=partial(collate_pairs, collate=DataCollatorForPreference(tokenizer.pad_token_id)),
        train_dataset=rows,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
    )
    if isinstance(policy, PeftModel) and "ref" in policy.peft_config:
        policy.delete_adapter("ref")  # TRL's frozen copy of the adapter; our reference is in the rows
    trainer.attach(plan, context, config.keep_checkpoints)
    announce(trainer, config, context, sequences_per_row=2, head="lm")
    metrics = fit(trainer, context)
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer)
    accuracy = metrics.get("eval_rewards/accuracies")
    return StageResult(metrics, f"eval accuracy {accuracy:.3f}" if accuracy is not None else "", int(metrics["tokens"]))


def dpo_arguments(config: DpoConfig, common: dict[str, Any]) -> trl.DPOConfig:
    """Return TRL's configuration of the loss.

    Raises UsageError on an unknown loss option.
    """
    known = {name for name in trl.DPOConfig.__dataclass_fields__ if name not in common}
    for name in config.loss_options:
        if name not in known:
            raise UsageError(
                f"train.dpo.loss_options.{name}: unknown option of TRL's DPOConfig{did_you_mean(name, known)}"
            )
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
