"""Write a trained model as a Hugging Face folder, whole, however its weights are spread over processes.

Weights are gathered and written a decoder layer at a time, so that the first rank never holds a second copy of the
model: at most one layer and the shard being filled.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from posttrain.models.pretrained import INDEX, WEIGHTS
from posttrain.stage import heartbeat
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9
"""Weights beyond this go to several files and an index."""


class ShardWriter:
    """Collects tensors and writes a safetensors file whenever the next would make it larger than a shard."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory = directory
        self.shard_bytes = shard_bytes
        self.held_bytes = 0
        self.total_bytes = 0
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor on the CPU."""
        if self._pending and self.held_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self.held_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, and give the files the names that `from_pretrained` looks for."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self.directory / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            shard = self.directory / f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).rename(shard)
            weight_map |= dict.fromkeys(names, shard.name)
        write_json_atomic(
            self.directory / INDEX, {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        )

    def _flush(self) -> None:
        save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending = {}
        self.held_bytes = 0

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number:05}.safetensors"


def save_whole_model(
    model: Any, output: Path, main_process: bool, shard_bytes: int = SHARD_BYTES, rounded_to: torch.dtype | None = None
) -> int:
    """Write a model's weights and configuration to ``output`` on the first rank; every rank must call this.

    Returns the most bytes that the first rank held beside the model at once.

    An adapter is written alone. Weights have the precision of the optimizer's own copy, which is float32 where
    DeepSpeed computes in bfloat16, unless they are ``rounded_to`` another; an adapter's never are. Fused weights are
    split and renamed as in the files that they were loaded from.
    """
    state = model.state_dict()  # before the parameters are looked at: under FSDP it puts gathered ones back into shards
    if isinstance(model, PeftModel):
        trained = {name: whole(p, main_process) for name, p in model.named_parameters() if p.requires_grad}
        if main_process:
            model.save_pretrained(str(output), state_dict=trained, save_embedding_layers=False)
        return sum(tensor.nbytes for tensor in trained.values())
    writer = ShardWriter(output, shard_bytes)
    dtype, most_held = None, 0
    for unit in _layer_by_layer(model, state):
        heartbeat.pulse()
        heartbeat.beat("saving the model")
        tensors = {name: whole(tensor, main_process) for name, tensor in unit}
        if main_process:
            if rounded_to is not None:
                tensors = {name: t.to(rounded_to) if t.is_floating_point() else t for name, t in tensors.items()}
            dtype = dtype or next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
            most_held = max(most_held, writer.held_bytes + sum(tensor.nbytes for tensor in tensors.values()))
            for name, tensor in revert_weight_conversion(model, tensors).items():
                writer.add(name, tensor)
    if main_process:
        writer.finish()
        _save_configuration(model, output, dtype or model.dtype)
        log.info("model written: %.1f MB, at most %.1f MB gathered", writer.total_bytes / 1e6, most_held / 1e6)
    return most_held


def whole(tensor: Tensor, main_process: bool) -> Tensor:
    """Return a parameter or buffer in full on the CPU of the first rank (elsewhere nothing of use).

    Collective: all ranks must call it for the same tensors in the same order.
    """
    full = gathered(tensor)
    return full.cpu() if main_process else torch.empty(0)


def gathered(tensor: Tensor) -> Tensor:
    """Return a parameter or buffer in full on every rank, in the precision of the optimizer's own copy.

    Collective: all ranks must call it for the same tensors in the same order.
    """
    full: Tensor | None = None
    if isinstance(tensor, DTensor):
        full = tensor.full_tensor()
    elif hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"):
        full = _whole_of_deepspeed(tensor)
    return (tensor if full is None else full).detach()


def _whole_of_deepspeed(parameter: Tensor) -> Tensor | None:
    """Return the optimizer's float32 copy of a trained parameter; a frozen one as the forward pass has it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        master: Tensor | None = safe_get_full_fp32_param(parameter)
        return master
    if not hasattr(parameter, "ds_id"):
        return None
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def _layer_by_layer(model: Any, state: dict[str, Tensor]) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield names and tensors of what is to be saved, a decoder layer at a time; tied weights come once.

    Layers stay together because the weight conversions of `transformers` may need all tensors of one.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ignored, tied = set(model._keys_to_ignore_on_save or ()), getattr(model, "all_tied_weights_keys", {})
    tensors = []
    for name, value in state.items():
        tensor = parameters.get(name, value)
        if name not in ignored and not (name in tied and parameters.get(tied[name]) is tensor):
            tensors.append((name, tensor))
    for _, unit in groupby(tensors, key=lambda item: _layer_of(item[0])):
        yield list(unit)


def _layer_of(name: str) -> str:
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else name


def _save_configuration(model: Any, output: Path, dtype: torch.dtype) -> None:
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    model.config.save_pretrained(output)
    if model.can_generate():
        model.generation_config.save_pretrained(output)
    if model.is_remote_code():
        custom_object_save(model, output, config=model.config)
