"""Make a model trainable: every weight, or a low-rank adapter."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from posttrain.stage.errors import UsageError
from posttrain.train.config import AdapterConfig, TrainingConfig


def make_trainable(
    model: PreTrainedModel, config: AdapterConfig, where: str, *, classifier: bool = False, one_dtype: bool = False
) -> Any:
    """Return the model as it is trained.

    A full model stays as it is, or gets a fresh adapter. An adapter model goes on training its adapter, or has it
    merged into the backbone for full finetuning. ``where`` is the stage's configuration path, for messages. With
    ``one_dtype`` an adapter has the precision of its backbone, which ZeRO-3 needs; its optimizer keeps float32 copies.

    Raises UsageError when an existing adapter does not have the configured rank.
    """
    if isinstance(model, PeftModel):
        if config.kind == "full":
            return merged(model)
        rank = model.peft_config["default"].r
        if rank != config.rank:
            raise UsageError(
                f"{where}.adapter.rank: {config.rank}, but the model's adapter, which this stage goes on training, has "
                f"rank {rank}; set {where}.adapter.rank={rank}, or {where}.adapter.kind=full to merge it first"
            )
        return _in_backbone_dtype(model) if one_dtype else model
    if config.kind == "full":
        return model
    if config.kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, lora_config(config, classifier), autocast_adapter_dtype=not one_dtype)


def _in_backbone_dtype(model: PeftModel) -> PeftModel:
    dtype = next(p.dtype for p in model.parameters() if not p.requires_grad)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def merged(model: Any) -> Any:
    """Return a model with its adapter, if any, merged into weights that can be trained: the adapter had frozen them."""
    return model.merge_and_unload().requires_grad_(True) if isinstance(model, PeftModel) else model


def lora_config(config: AdapterConfig, classifier: bool) -> LoraConfig:
    """Return the peft configuration; a classifier's score head is trained whole and saved with the adapter."""
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        modules_to_save=["score"] if classifier else None,
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """Return all and trainable parameters of a model."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def weights_dtype(config: TrainingConfig) -> str:
    """Return the precision that weights are loaded in: a frozen backbone takes the forward pass's, others float32."""
    return "float32" if config.adapter.kind == "full" else config.dtype


def without_attention_dropout(model: Any) -> Any:
    """Return the model with attention dropout off: TRL's `disable_dropout` reaches `nn.Dropout` modules only.

    Preference losses compare a policy with what it was before; noise in one of the two is a false difference.
    """
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model
