"""A reward model built from a policy: its trunk under a new score head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, set_seed

from posttrain.models.adapters import weights_dtype, without_dropout
from posttrain.models.load import (
    backbone_directory,
    four_bit_config,
    head_from_elsewhere,
    implementation,
    is_adapter,
    known_attention,
    load_policy,
)
from posttrain.stage.artifact import trusts_remote_code
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed
from posttrain.train.config.common import AdapterConfig, Dtype
from posttrain.train.nets.policy import loaded_whole, trained_as

_ROWS = ".trainable_tokens_delta"
"""Part of the name of what an adapter trains of the embeddings."""


def classifier_from_policy(
    source: Path,
    adapter: AdapterConfig,
    dtype: Dtype,
    attention: str,
    distributed: Distributed,
    pad_token_id: int,
    seed: int,
) -> Any:
    """Return a sequence classifier with one output, ready to train: the policy's trunk under a new score head.

    The head is drawn from the seed. A policy that is an adapter is merged for full finetuning; for a reward adapter,
    its weights are where the new adapter starts, on the same backbone.
    """
    set_seed(seed)
    with loaded_whole(is_adapter(source)):
        if is_adapter(source) and adapter.kind == "full":
            model = _classifier_from_merged(source, attention, pad_token_id)
        else:
            backbone = backbone_directory(source)
            trusted = trusts_remote_code(backbone)
            config = AutoConfig.from_pretrained(backbone, trust_remote_code=trusted)
            with head_from_elsewhere(config), known_attention(attention):  # it is new on purpose
                model = AutoModelForSequenceClassification.from_pretrained(
                    backbone,
                    num_labels=1,
                    pad_token_id=pad_token_id,
                    attn_implementation=implementation(attention),
                    dtype=getattr(torch, weights_dtype(adapter.kind, dtype)),
                    quantization_config=four_bit_config() if adapter.kind == "qlora" else None,
                    trust_remote_code=trusted,
                )
        model = trained_as(adapter, model, source, distributed, "train.reward", classifier=True)
        if is_adapter(source) and adapter.kind != "full":
            _start_from_adapter(model, source)
    return without_dropout(model)


def _classifier_from_merged(source: Path, attention: str, pad_token_id: int) -> PreTrainedModel:
    merged = load_policy(source).merge_and_unload()
    merged.config.num_labels, merged.config.pad_token_id = 1, pad_token_id
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        merged.config,
        attn_implementation=implementation(attention),
        trust_remote_code=trusts_remote_code(source),
    )
    trunk = model.base_model_prefix
    getattr(model, trunk).load_state_dict(getattr(merged, trunk).state_dict())
    return model


@torch.no_grad()
def _start_from_adapter(model: PeftModel, source: Path) -> None:
    """Copy a policy's adapter into the reward model's; raise UsageError where the two do not have the same weights."""
    saved = load_file(source / "adapter_model.safetensors")
    head = {
        name for name in saved if _ROWS in name and not name.startswith(f"base_model.model.{model.base_model_prefix}.")
    }
    saved = {name: tensor for name, tensor in saved.items() if name not in head}  # those of an output layer
    trained = {n: p for n, p in model.named_parameters() if ".lora_" in n or _ROWS in n}
    own = {n.replace(".default.", ".").removesuffix(".default"): p for n, p in trained.items()}
    different = {n for n in {*saved, *own} if n not in saved or n not in own or saved[n].shape != own[n].shape}
    if different:
        raise UsageError(
            f"train.reward.adapter: it does not fit the adapter of {source.name} that it starts from "
            f"({min(different)}); use the same rank, target_modules and new_tokens, or adapter.kind=full to merge it "
            "first"
        )
    for name, parameter in own.items():
        parameter.copy_(saved[name])
