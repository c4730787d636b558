"""Build a reward model from a policy, and measure its scale.

R responses of a micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed
from trl.trainer.reward_trainer import suppress_seqcls_warning

from posttrain.sample.models import (
    backbone_directory,
    four_bit_config,
    is_adapter,
    load_policy,
    trusts_remote_code,
)
from posttrain.stage.errors import UsageError
from posttrain.train.adapters import make_trainable, weights_dtype, without_attention_dropout
from posttrain.train.config import RewardConfig

_STATISTICS_BATCHES = 64
"""Micro-batches per rank that the reward's mean and standard deviation are measured on."""


def classifier_from_policy(
    source: Path, config: RewardConfig, pad_token_id: int, seed: int, *, one_dtype: bool = False
) -> Any:
    """Return a sequence classifier with one output, ready to train: the policy's trunk under a new score head.

    The head is drawn from the seed. A policy that is an adapter is merged for full finetuning; for a reward adapter,
    its weights are where the new adapter starts, on the same backbone. ``one_dtype`` is that of `make_trainable`.
    """
    set_seed(seed)
    if is_adapter(source) and config.adapter.kind == "full":
        model = _classifier_from_merged(source, config, pad_token_id)
    else:
        with suppress_seqcls_warning():  # the head is new on purpose
            model = AutoModelForSequenceClassification.from_pretrained(
                backbone_directory(source),
                num_labels=1,
                pad_token_id=pad_token_id,
                attn_implementation=config.attention,
                dtype=getattr(torch, weights_dtype(config)),
                quantization_config=four_bit_config() if config.adapter.kind == "qlora" else None,
                trust_remote_code=trusts_remote_code(backbone_directory(source)),
            )
    model = make_trainable(model, config.adapter, "train.reward", classifier=True, one_dtype=one_dtype)
    if is_adapter(source) and config.adapter.kind != "full":
        _start_from_adapter(model, source)
    return without_attention_dropout(model)


def _classifier_from_merged(source: Path, config: RewardConfig, pad_token_id: int) -> PreTrainedModel:
    merged = load_policy(source).merge_and_unload()
    merged.config.num_labels, merged.config.pad_token_id = 1, pad_token_id
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        merged.config, attn_implementation=config.attention
    )
    trunk = model.base_model_prefix
    getattr(model, trunk).load_state_dict(getattr(merged, trunk).state_dict())
    return model


@torch.no_grad()
def _start_from_adapter(model: PeftModel, source: Path) -> None:
    """Copy a policy's adapter into the reward model's; raise UsageError where the two do not have the same weights."""
    saved = load_file(source / "adapter_model.safetensors")
    own = {n.replace(".default.", "."): p for n, p in model.named_parameters() if ".lora_" in n}
    different = {n for n in {*saved, *own} if n not in saved or n not in own or saved[n].shape != own[n].shape}
    if different:
        raise UsageError(
            f"train.reward.adapter: it does not fit the adapter of {source.name} that it starts from "
            f"({min(different)}); use the same rank and target_modules, or adapter.kind=full to merge it first"
        )
    for name, parameter in own.items():
        parameter.copy_(saved[name])


@torch.no_grad()
def reward_statistics(trainer: Any) -> tuple[float, float]:
    """Return mean and standard deviation of the reward over the first training batches of all ranks.

    A user of the model subtracts and divides by them, so that rewards of different models are comparable.
    """
    trainer.model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=trainer.args.device)
    for index, batch in enumerate(trainer.get_train_dataloader()):
        if index == _STATISTICS_BATCHES:
            break
        inputs = trainer._prepare_inputs(batch)
        outputs = trainer.model_wrapped(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        rewards_R = outputs.logits.squeeze(-1).double()
        sums += torch.stack([torch.ones_like(rewards_R).sum(), rewards_R.sum(), (rewards_R**2).sum()])
    if dist.is_initialized():
        dist.all_reduce(sums)
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
