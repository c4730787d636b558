"""The parts of a memory estimate as figures: each formula with its numbers, which a test holds to the estimate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from posttrain.plan.figure import Figure, figure
from posttrain.plan.memory import (
    HEAD_TILE_TOKENS,
    HEAD_TILE_VOCABULARY,
    STORED_LOGITS,
    AdapterKind,
    Dtype,
    MemoryEstimate,
    activation_bytes_per_token,
    frozen_bytes,
    gathered_bytes,
    share_of,
)
from posttrain.plan.model import Head, ModelShape
from posttrain.plan.optimizers import KEEPS, OptimizerKind, optimizer_bytes

_ZERO = "Rajbhandari et al. 2020"


@dataclasses.dataclass(frozen=True)
class Options:
    """What `posttrain.plan.memory.estimate_memory` is told, by the same names."""

    tokens: int
    head: Head = "lm"
    adapter: AdapterKind = "full"
    rank: int = 16
    target_modules: str | Sequence[str] = "all-linear"
    dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    num_processes: int = 1
    zero_stage: int | None = None
    offload: bool = False
    kernels: bool = True
    own_trunk: bool = False
    fresh: bool = False
    optimizer: OptimizerKind = "adamw"
    tensor: int = 1
    sequence_parallel: bool = False

    @property
    def low(self) -> bool:
        """Whether it computes in 16 bits."""
        return self.dtype == "bfloat16"

    def parts(self, from_stage: int) -> int:
        """Return over how many processes is spread what ZeRO spreads from a stage on."""
        spread = self.zero_stage is not None and self.zero_stage >= from_stage
        return self.num_processes if spread else 1


def part_figures(shape: ModelShape, estimate: MemoryEstimate, told: Options) -> list[Figure]:
    """Return weights, gradients, optimizer, activations and head of one model that learns."""
    own = share_of(shape, estimate.trainable, told.tensor)
    return [
        _weights(shape, estimate, told, own),
        _gradients(told, own),
        _optimizer(shape, estimate, told, own),
        _activations(shape, told),
        *([_head(shape, told)] if told.head == "lm" else []),
    ]


def _weights(shape: ModelShape, estimate: MemoryEstimate, told: Options, own: int) -> Figure:
    formula, source = "trainable · bytes", "float32, and in autocast a bfloat16 copy of each"
    numbers: dict[str, float] = {"trainable": own, "bytes": 6 if told.low else 4}
    if told.zero_stage is not None:
        formula, source = (
            "trainable · bytes / processes",
            f"of the engine's precision; spread from stage 3 on ({_ZERO})",
        )
        numbers |= {"bytes": 2 if told.low else 4, "processes": told.parts(3)}
    if told.offload and told.zero_stage == 3:
        formula, source = "0 · trainable", "on the host"
    if told.adapter != "full":
        formula, source = f"{formula} + frozen / parts", f"{source}; frozen ones as they are stored"
        frozen = frozen_bytes(shape, estimate.parameters - estimate.trainable, told.adapter, told.dtype)
        numbers |= {"frozen": frozen, "parts": told.parts(3)}
        if told.offload and told.zero_stage == 3:
            formula = "0 · trainable"
    if told.zero_stage == 3:
        formula, source = f"{formula} + gathered / tensor", f"{source}; the largest layer is whole to compute"
        numbers |= {"gathered": gathered_bytes(shape, told.adapter), "tensor": told.tensor}
    return figure("weights", "B", formula, source, **numbers)


def _gradients(told: Options, own: int) -> Figure:
    if told.offload:
        return figure("gradients", "B", "0 · trainable", "on the host", trainable=own)
    if told.zero_stage is None:
        copies = 2 if told.num_processes > 1 else 1
        source = "float32, and a second set in DDP's buckets"
        return figure("gradients", "B", "trainable · 4 · copies", source, trainable=own, copies=copies)
    source = f"of the engine's precision; spread from stage 2 on ({_ZERO})"
    size = 2 if told.low else 4
    numbers = {"trainable": own, "bytes": size, "processes": told.parts(2)}
    return figure("gradients", "B", "trainable · bytes / processes", source, **numbers)


def _optimizer(shape: ModelShape, estimate: MemoryEstimate, told: Options, own: int) -> Figure:
    if told.offload:
        return figure("optimizer", "B", "0 · trainable", "on the host", trainable=own)
    kept = optimizer_bytes(
        shape,
        told.head,
        told.optimizer,
        adapter=told.adapter != "full",
        rank=told.rank,
        target_modules=told.target_modules,
    )
    numbers = {"kept": kept * own // max(estimate.trainable, 1), "trainable": own, "processes": told.parts(1)}
    if told.zero_stage is None or not told.low:
        return figure("optimizer", "B", "kept / processes", KEEPS[told.optimizer], **numbers)
    source = f"{KEEPS[told.optimizer]}; and a float32 copy of bfloat16 weights; spread from stage 1 on ({_ZERO})"
    return figure("optimizer", "B", "(kept + 4 · trainable) / processes", source, **numbers)


def _activations(shape: ModelShape, told: Options) -> Figure:
    per_token = activation_bytes_per_token(
        shape,
        adapter=told.adapter,
        rank=told.rank,
        dtype=told.dtype,
        gradient_checkpointing=told.gradient_checkpointing,
        deepspeed=told.zero_stage is not None,
        own_trunk=told.own_trunk,
        tensor=told.tensor,
        sequence_parallel=told.sequence_parallel,
    )
    kept = "what autograd keeps of all layers, by precision, adapter and kind of layer, scores of attention never"
    if told.gradient_checkpointing:
        kept = "each layer's input, and everything of the one that is computed again"
    return figure("activations", "B", "tokens · per_token", kept, tokens=told.tokens, per_token=per_token)


def _head(shape: ModelShape, told: Options) -> Figure:
    size, trained = 2 if told.low else 4, 1 if told.adapter == "full" else 0
    vocabulary = shape.vocab_size // told.tensor
    numbers = {"size": size, "hidden": shape.hidden_size, "tokens": told.tokens, "vocabulary": vocabulary}
    ends = "+ 4 · hidden · (tokens + vocabulary · trained)"
    if told.kernels:
        formula = f"min(tokens, {HEAD_TILE_TOKENS}) · min(vocabulary, {HEAD_TILE_VOCABULARY}) · size {ends}"
        source = "a tile of logits, float32 gradients of the head's inputs and weights"
    else:
        formula = f"min(tokens · vocabulary, {STORED_LOGITS}) · size {ends}"
        source = "logits as far as they are kept, float32 gradients of the head's inputs and weights"
    return figure("head", "B", formula, source, trained=trained, **numbers)
