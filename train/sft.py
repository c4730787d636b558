"""Supervised finetuning on tokenized demonstrations.

accelerate launch -m posttrain.train.sft inputs.model=DIR inputs.data=DIR output=DIR optimizer.learning_rate=1e-5
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import trl
from torch import Tensor

from posttrain.data.chat import load_tokenizer
from posttrain.sample.models import is_adapter, load_policy
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.adapters import make_trainable, weights_dtype
from posttrain.train.arguments import training_arguments
from posttrain.train.collate import collate_packs, collate_sft
from posttrain.train.config import SftConfig
from posttrain.train.dataset import fill_up, read_demonstrations, require_tokens
from posttrain.train.fit import announce, fit, plan_steps, save_model
from posttrain.train.packing import pack_demonstrations
from posttrain.train.processes import join, loaded_whole, zero_stage
from posttrain.train.trainer import StageTrainer


class SftTrainer(StageTrainer, trl.SFTTrainer):
    """TRL's trainer and fused LM head, with token-exact losses over micro-batches, ranks and the held-out split."""

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
    join(context)
    source = context.inputs["model"]
    tokenizer = load_tokenizer(source)
    require_tokens(context.inputs["data"], "demonstration", tokenizer)
    rows, held_out = (read_demonstrations(context.inputs["data"], split) for split in ("train", "eval"))
    if config.packing:
        rows, held_out = (pack_demonstrations(split, config.pack_length) for split in (rows, held_out))
    plan = plan_steps(config, len(rows), context)
    arguments = trl.SFTConfig(
        **training_arguments(config, plan, context),
        loss_type=config.loss,
        max_length=None,
    )
    four_bit = config.adapter.kind == "qlora"
    zero3 = zero_stage(context.spec.distributed) == 3
    with loaded_whole(is_adapter(source)):
        policy = load_policy(source, weights_dtype(config), config.attention, trainable_adapter=True, four_bit=four_bit)
        policy = make_trainable(policy, config.adapter, "train.sft", one_dtype=zero3)
    flatten = config.attention.startswith("flash")
    collate = partial(collate_packs, flatten=flatten) if config.packing else collate_sft
    trainer = SftTrainer(
        model=policy,
        args=arguments,
        data_collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
        train_dataset=rows,
        eval_dataset=fill_up(held_out, plan.evaluation_multiple) if len(held_out) else None,
        processing_class=tokenizer,
    )
    trainer.attach(plan, context, config.keep_checkpoints)
    announce(trainer, config, context, sequences_per_row=1, head="lm")
    metrics = fit(trainer, context)
    save_model(trainer.accelerator.unwrap_model(trainer.model), context, tokenizer)
    return StageResult(
        metrics, f"eval loss {metrics['eval_loss']:.3f}" if "eval_loss" in metrics else "", int(metrics["tokens"])
    )


if __name__ == "__main__":
    stage_main(run, SftConfig, kind="model")
