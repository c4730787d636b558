"""Low-rank adapters: put onto a model, trained on, or merged into it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from posttrain.models.token_rows import row_targets, trained_token_ids, use_rows_alone
from posttrain.stage.errors import UsageError

log = logging.getLogger(__name__)

AdapterKind = Literal["full", "lora", "qlora"]


def make_trainable(
    model: PreTrainedModel,
    kind: AdapterKind,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    new_tokens: bool = True,
    rslora: bool = False,
    dora: bool = False,
    *,
    where: str,
    new_token_ids: Sequence[int] = (),
    classifier: bool = False,
    engine: str = "single",
) -> Any:
    """Return the model as it is trained.

    A full model stays as it is, or gets a fresh adapter. An adapter model goes on training its adapter, or has it
    merged into the backbone for full finetuning. A fresh adapter trains the embeddings of ``new_token_ids``, too, if
    ``new_tokens``. ``where`` is the stage's configuration path, for messages. The score head of a ``classifier`` is
    trained whole and saved with the adapter. Under the engine ``zero3`` an adapter has the precision of its backbone,
    which DeepSpeed needs; its optimizer keeps float32 copies.

    Raises UsageError when an existing adapter does not have the configured rank or form, or trains rows that it should
    not, and where rows cannot be trained.
    """
    one_dtype = engine == "zero3"
    if isinstance(model, PeftModel):
        if kind == "full":
            return merged(model)
        _require_same_adapter(model, rank, new_tokens, where)
        _require_same_form(model, {"use_rslora": rslora, "use_dora": dora}, where)
        _require_rows_whole(model, bool(trained_token_ids(model)), engine, where)
        return _in_backbone_dtype(model) if one_dtype else model
    if kind == "full":
        return model
    rows = row_targets(model, new_token_ids if new_tokens else (), where)
    _require_rows_whole(model, rows is not None, engine, where)
    _require_other_targets(rows, target_modules, where)
    if kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=target_modules,
        modules_to_save=["score"] if classifier else None,
        trainable_token_indices=rows,
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
    )
    adapted = use_rows_alone(get_peft_model(model, config, autocast_adapter_dtype=not one_dtype))
    if rows is not None:
        log.info("the adapter trains the embeddings of tokens that were added, too: %s", trained_token_ids(adapted))
    return adapted


def _require_same_adapter(model: PeftModel, rank: int, new_tokens: bool, where: str) -> None:
    own = model.peft_config["default"].r
    if own != rank:
        raise UsageError(
            f"{where}.adapter.rank: {rank}, but the model's adapter, which this stage goes on training, has "
            f"rank {own}; set {where}.adapter.rank={own}, or {where}.adapter.kind=full to merge it first"
        )
    if not new_tokens and trained_token_ids(model):
        raise UsageError(
            f"{where}.adapter.new_tokens: false, but the model's adapter, which this stage goes on training, has "
            f"embeddings of its own; set {where}.adapter.new_tokens=true, or {where}.adapter.kind=full to merge it "
            "first"
        )


def _require_same_form(model: PeftModel, wanted: dict[str, bool], where: str) -> None:
    for field, asked in wanted.items():
        knob, own = field.removeprefix("use_"), bool(getattr(model.peft_config["default"], field))
        if own != asked:
            raise UsageError(
                f"{where}.adapter.{knob}: {str(asked).lower()}, but with the model's adapter, which this stage goes on "
                f"training, it is {str(own).lower()}; set {where}.adapter.{knob}={str(own).lower()}, or "
                f"{where}.adapter.kind=full to merge it first"
            )


def _require_rows_whole(model: Any, rows: bool, engine: str, where: str) -> None:
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if rows and (engine == "zero3" or (engine == "fsdp" and tied)):
        raise UsageError(
            f"{where}.adapter.new_tokens: true, but {engine} keeps {'tied ' * tied}embeddings in parts, so that "
            f"rows of them cannot be trained; use distributed=ddp or zero2, or "
            f"{where}.adapter.kind=full, or, for a model that knows its tokens, {where}.adapter.new_tokens=false"
        )


def _require_other_targets(rows: Collection[str] | None, target_modules: str | list[str], where: str) -> None:
    for name in rows or ():
        if isinstance(target_modules, list):
            hit = any(f".{name}".endswith(f".{target}") for target in target_modules)
        else:
            hit = target_modules != "all-linear" and re.fullmatch(target_modules, name) is not None
        if hit:
            raise UsageError(
                f"{where}.adapter.target_modules: names {name}, whose rows of added tokens are trained; leave it out, "
                f"or set {where}.adapter.new_tokens=false"
            )


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
