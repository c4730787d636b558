"""Adapters as they are published: a PEFT folder that names the model which it was trained on."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from posttrain.models.load import backbone_directory, is_adapter
from posttrain.models.pretrained import INDEX, WEIGHTS, download
from posttrain.stage.errors import UsageError

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder holds an adapter in PEFT's format and no whole model."""
    whole = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    return (folder / ADAPTER_CONFIG).is_file() and not whole


def base_of(folder: Path, with_code: bool = False) -> Path:
    """Return the folder of the model that an adapter was trained on, from the Hub where it is not a local one.

    A local one is named by a path, relative to the adapter's folder or to the current one. Raises UsageError, before
    anything large is read, where there is none, or the adapter cannot be merged into it.
    """
    config = _config(folder)
    _require_mergeable(folder, config)
    if is_adapter(folder):
        return backbone_directory(folder)
    where, name = folder / ADAPTER_CONFIG, str(config.get("base_model_name_or_path") or "")
    local = [path for path in (folder / name, Path(name).expanduser()) if name and path.is_dir()]
    if local:
        base = local[0]
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        fix = f"base_model_name_or_path of {where} the path of a local copy"
        base = download(name, config.get("revision"), with_code, what=f"{folder}: an adapter on {name}", fix=fix)
    else:
        raise UsageError(
            f"{where}: base_model_name_or_path is {name!r}, and no such folder is here; give the path or the Hub name "
            "of the model that the adapter was trained on"
        )
    _require_whole(base, where)
    return base


def merged_with_base(folder: Path, base: Path, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model of ``base`` in float32 with an adapter merged into it, its new rows of embeddings included.

    Raises UsageError where the two do not fit.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    rows = _rows_needed(folder, model)
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, UserWarning) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{folder}: the adapter does not fit {base} ({reason}); is its base_model_name_or_path right?"
        ) from None
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def trained_rows(folder: Path) -> set[int]:
    """Return the tokens whose embeddings an adapter brings one by one."""
    indices = _config(folder).get("trainable_token_indices") or {}
    return set().union(*indices.values()) if isinstance(indices, dict) else set(indices)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{folder / ADAPTER_CONFIG}: not JSON ({error}); download it again") from None
    return config


def _require_mergeable(folder: Path, config: dict[str, Any]) -> None:
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        raise UsageError(
            f"{folder}: an adapter of peft_type {kind}; only LORA is merged here: merge it with peft's "
            "merge_and_unload, and give the folder of the whole model"
        )
    if task not in (None, "CAUSAL_LM"):
        raise UsageError(f"{folder}: an adapter for task_type {task}, not for a language model; give a CAUSAL_LM one")
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise UsageError(
            f"{folder}: no {_ADAPTER_WEIGHTS}; pickled weights are never opened, since they can run code: convert them "
            "to safetensors"
        )


def _require_whole(base: Path, where: Path) -> None:
    """Check that a base is neither an adapter itself nor quantised, so that weights can be merged into it."""
    fix = "name the whole model in its own precision as base_model_name_or_path"
    if is_adapter_folder(base):
        raise UsageError(f"{where}: its base {base} is an adapter, too; {fix}")
    file = base / "config.json"
    if file.is_file() and "quantization_config" in json.loads(file.read_text(encoding="utf-8")):
        raise UsageError(f"{where}: the weights of its base {base} are quantised, so nothing can be merged; {fix}")


def _rows_needed(folder: Path, model: PreTrainedModel) -> int:
    """Return how many tokens the embeddings must have for an adapter that brings some."""
    matrices = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {f"{_PREFIX}{name}.weight" for name, module in model.named_modules() if id(module) in matrices}
    try:
        with safe_open(folder / _ADAPTER_WEIGHTS, "pt") as tensors:
            rows = [tensors.get_slice(name).get_shape()[0] for name in names.intersection(tensors.keys())]
    except SafetensorError as error:
        raise UsageError(f"{folder / _ADAPTER_WEIGHTS}: not a safetensors file ({error}); download it again") from None
    return max([*rows, *(token + 1 for token in trained_rows(folder))], default=0)
