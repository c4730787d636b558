"""Supervised finetuning on tokenized demonstrations.

accelerate launch -m posttrain.train.sft inputs.model=DIR inputs.data=DIR output=DIR optimizer.learning_rate=1e-5
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import trl
from torch import Tensor

from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.sft import SftConfig
from posttrain.train.engine.arguments import training_arguments
from posttrain.train.engine.first_step import require_fused_log_probs, require_separate_rows
from posttrain.train.engine.fit import by_config, fit, plan_steps, save_model
from posttrain.train.engine.opening import announce, begin, describe_rows, estimated_memory
from posttrain.train.engine.trainer import StageTrainer
from posttrain.train.nets.fused_head import fused_on_cpu
from posttrain.train.nets.policy import trainable_policy, wants_mask
from posttrain.train.rows.collate import collate_packs, collate_sft
from posttrain.train.rows.columns import lengths_of
from posttrain.train.rows.dataset import fill_up, read_demonstrations
from posttrain.train.rows.packs import pack_demonstrations


class SftTrainer(StageTrainer, trl.SFTTrainer):
    """TRL's trainer with a fused head, and with token-exact losses over micro-batches, ranks and the held-out split."""

    def __init__(self, **theirs: Any) -> None:
        """``theirs`` are the arguments of `StageTrainer`."""
        super().__init__(**theirs)
        fused_on_cpu(self.model)

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check that packed rows keep apart, and that the fused output layer is the model's own."""
        if "position_ids" in inputs:
            require_separate_rows(model, inputs["input_ids"], inputs["position_ids"], "train.sft")
        require_fused_log_probs(model, inputs["input_ids"], "train.sft")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Return the sum of token losses over the tokens of the whole global batch (of this batch in evaluation)."""
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        loss_BT = -outputs.log_probs
        if self.args.loss_type == "dft":
            loss_BT = loss_BT * outputs.log_probs.exp().detach()  # Wu et al. 2025, eq. 9
        mode, trained = ("train" if model.training else "eval"), outputs.label_mask.sum()
        if mode == "eval":
            self.sums.add(mode, "loss", loss_BT.sum(), trained)
        self.sums.add(mode, "token_accuracy", outputs.is_top1.sum(), trained)
        self.sums.add(mode, "entropy", outputs.entropy.sum(), trained)
        tokens = trained if num_items_in_batch is None else num_items_in_batch
        loss = loss_BT.sum() / torch.as_tensor(tokens).clamp(min=1)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages over ranks; the token count is already global
        return (loss, outputs) if return_outputs else loss


def run(config: SftConfig, context: Context) -> StageResult:
    """Finetune ``inputs.model`` on ``inputs.data`` and write the model."""
    tokenizer = begin(context, "demonstration")
    rows, held_out = (read_demonstrations(context.inputs["data"], split) for split in ("train", "eval"))
    if config.packing:
        rows, held_out = (pack_demonstrations(split, config.pack_length) for split in (rows, held_out))
    source, distributed = context.inputs["model"], context.spec.distributed
    plan = plan_steps(config, len(rows), distributed.num_processes, len(held_out), "train.sft")
    plan = by_config(plan, config, rows, context.spec.seed)
    arguments = trl.SFTConfig(
        **training_arguments(config, plan, context),
        loss_type=config.loss,
        max_length=None,
        neftune_noise_alpha=config.neftune_alpha,
    )
    attention = pack_attention(config.attention, torch.cuda.is_available()) if config.packing else config.attention
    policy = trainable_policy(source, config.adapter, config.dtype, attention, distributed, "train.sft", dropout=True)
    flatten = attention.startswith("flash")
    if config.packing:
        collate = partial(collate_packs, flatten=flatten)
    else:
        collate = partial(collate_sft, with_mask=wants_mask(policy))
    trainer = SftTrainer(
        plan=plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=policy,
        args=arguments,
        data_collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
        train_dataset=rows,
        eval_dataset=fill_up(held_out, plan.evaluation_multiple) if len(held_out) else None,
        processing_class=tokenizer,
    )
    tokens = int(lengths_of(rows).sum())
    memory = estimated_memory(config, context, plan, int(lengths_of(rows).max()), "lm")
    announce(plan, "packs" if config.packing else "rows", describe_rows(plan, tokens), policy, memory)
    metrics = fit(trainer, context, config, memory)
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer, config.save_dtype)
    headline = f"eval loss {metrics['eval_loss']:.3f}" if "eval_loss" in metrics else ""
    return StageResult(metrics, headline, int(metrics["tokens"]))


def pack_attention(attention: str, on_gpu: bool) -> str:
    """Return the implementation for packs: on a GPU others would build a mask of T × T for each of them."""
    return "flex_attention" if attention == "auto" and on_gpu else attention


if __name__ == "__main__":
    stage_main(run, SftConfig, kind="model")
