"""Low-rank adapters: put onto a model, trained on, or merged into it."""

from __future__ import annotations

from typing import Any, Literal

from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from posttrain.stage.errors import UsageError

AdapterKind = Literal["full", "lora", "qlora"]


def make_trainable(
    model: PreTrainedModel,
    kind: AdapterKind,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    *,
    where: str,
    classifier: bool = False,
    one_dtype: bool = False,
) -> Any:
    """Return the model as it is trained.

    A full model stays as it is, or gets a fresh adapter. An adapter model goes on training its adapter, or has it
    merged into the backbone for full finetuning. ``where`` is the stage's configuration path, for messages. The score
    head of a ``classifier`` is trained whole and saved with the adapter. With ``one_dtype`` an adapter has the
    precision of its backbone, which ZeRO-3 needs; its optimizer keeps float32 copies.

    Raises UsageError when an existing adapter does not have the configured rank.
    """
    if isinstance(model, PeftModel):
        if kind == "full":
            return merged(model)
        own = model.peft_config["default"].r
        if own != rank:
            raise UsageError(
                f"{where}.adapter.rank: {rank}, but the model's adapter, which this stage goes on training, has "
                f"rank {own}; set {where}.adapter.rank={own}, or {where}.adapter.kind=full to merge it first"
            )
        return _in_backbone_dtype(model) if one_dtype else model
    if kind == "full":
        return model
    if kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        modules_to_save=["score"] if classifier else None,
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
    )
    return get_peft_model(model, config, autocast_adapter_dtype=not one_dtype)


def _in_backbone_dtype(model: PeftModel) -> PeftModel:
    dtype = next(p.dtype for p in model.parameters() if not p.requires_grad)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def merged(model: Any) -> Any:
    """Return a model with its adapter, if any, merged into weights that can be trained: the adapter had frozen them."""
    return model.merge_and_unload().requires_grad_(True) if isinstance(model, PeftModel) else model


def without_adapter_wrapper(model: Any) -> Any:
    """Return the transformers model inside a PeftModel, adapter layers in place; any other model as it is."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return all and trainable parameters of a model, also where an engine keeps them in parts."""
    sizes = [(getattr(p, "ds_numel", None) or p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def weights_dtype(kind: AdapterKind, dtype: str) -> str:
    """Return the precision that weights are loaded in: a frozen backbone takes the forward pass's, others float32."""
    return "float32" if kind == "full" else dtype


def without_dropout(model: Any) -> Any:
    """Return the model with all dropout off.

    Methods that compare a policy with what it was before need that: noise in one of the two is a false difference.
    """
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model
