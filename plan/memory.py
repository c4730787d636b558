"""Memory of one training process: what weights, gradients, optimizer states, activations and the LM head take.

The activation formulas count the tensors that autograd keeps for the backward pass of transformers' Llama and Qwen
blocks under SDPA attention without a padding mask. They were read off saved-tensor hooks, and a test holds them to the
byte.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from posttrain.plan.blocks import Block
from posttrain.plan.model import (
    Head,
    ModelShape,
    count_adapter,
    count_head,
    count_largest_layer,
    count_linear,
    count_parameters,
)
from posttrain.plan.optimizers import OptimizerKind, optimizer_bytes

AdapterKind = Literal["full", "lora", "qlora"]
Dtype = Literal["float32", "bfloat16"]

_EXPERT_WIDTH = 16
"""Bytes that experts keep per feature inside: their grouped products stay outside autocast."""
_FURTHER_NORM = 8
"""Bytes per feature that each norm keeps beyond a block's usual two."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of one 4-bit weight: itself, its share of a block's 8-bit scale, and of that scale's own 32-bit scale."""

HEAD_TILE_TOKENS, HEAD_TILE_VOCABULARY = 4096, 32768
"""TRL computes log-probabilities tile by tile and never holds all logits."""
STORED_LOGITS = 2**26
"""Logits that the output layer on a CPU keeps for the backward pass at most (`models/cpu/logit_tiles.py`)."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one process at the peak of a training step; allocator slack and the CUDA context come on top."""

    parameters: int
    """Parameters of the whole model, frozen ones and adapter included."""
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    """What the LM head's loss needs beside the activations."""
    frozen: int = 0
    """Weights of models that are not trained: reference, reward model, and a whole copy of the policy that samples."""
    cache: int = 0
    """Keys and values of the responses that are sampled at once."""

    fresh: bool = False
    """Whether gradients take the place of activations, layer by layer: one process, one micro-batch a step."""

    @property
    def total(self) -> int:
        """Bytes of everything at its peak: what sampling needs is gone when the updates begin."""
        return sum(self.at_peak().values())

    def at_peak(self) -> dict[str, int]:
        """Return the parts that are there at the peak; they make up the total."""
        learning = {"activations": self.activations, "head": self.head}
        moments: list[dict[str, int]] = [learning, {"cache": self.cache}]
        states = {"weights": self.weights, "optimizer": self.optimizer, "frozen": self.frozen}
        if self.fresh:
            moments.append({"gradients": self.gradients})
        else:
            states["gradients"] = self.gradients
        return states | max(moments, key=lambda parts: sum(parts.values()))


@dataclasses.dataclass(frozen=True)
class _Saved:
    """Bytes that one block keeps per token, by factor; the second line is what Qwen3's query and key norms add."""

    hidden: int
    query: int
    kv: int
    intermediate: int
    rank: int
    """Per rank of an adapter on every linear map of the block."""
    norm_query: int
    norm_kv: int


_SAVED: dict[str, _Saved] = {
    "float32": _Saved(24, 8, 8, 16, rank=0, norm_query=8, norm_kv=8),
    "autocast": _Saved(26, 4, 4, 8, rank=0, norm_query=6, norm_kv=6),
    "bfloat16": _Saved(16, 4, 4, 8, rank=0, norm_query=6, norm_kv=6),
    "cpu trunk": _Saved(16, 8, 8, 12, rank=0, norm_query=4, norm_kv=4),
    "adapter float32": _Saved(16, 8, 8, 16, rank=28, norm_query=4, norm_kv=4),
    "adapter autocast": _Saved(18, 6, 4, 8, rank=14, norm_query=4, norm_kv=4),
}
"""By regime: float32 throughout, float32 weights under bfloat16 autocast, bfloat16 weights, the trunk of `models/cpu`
that learns on CPUs, frozen backbone."""


def estimate_memory(
    shape: ModelShape,
    *,
    tokens: int,
    head: Head = "lm",
    adapter: AdapterKind = "full",
    rank: int = 16,
    target_modules: str | Sequence[str] = "all-linear",
    dtype: Dtype = "float32",
    gradient_checkpointing: bool = False,
    num_processes: int = 1,
    zero_stage: int | None = None,
    offload: bool = False,
    kernels: bool = True,
    own_trunk: bool = False,
    fresh: bool = False,
    optimizer: OptimizerKind = "adamw",
    tensor: int = 1,
    sequence_parallel: bool = False,
) -> MemoryEstimate:
    """Return what one process needs at the peak of a step.

    ``tokens`` is the size of one forward pass on one process, padding included: rows × sequence length, and twice that
    for pairs. ``zero_stage`` is DeepSpeed's; None means one process, or DDP over ``num_processes``. ``offload`` keeps
    weights in parts and their states in the memory of the CPU: only what is gathered to compute stays. ``kernels``
    says that the head's loss runs in one kernel, which is so on GPUs alone; ``own_trunk`` that the trunk of
    `models/cpu` runs; ``fresh`` is as in `MemoryEstimate`. ``tensor`` processes share each layer of a model that learns
    whole, and with ``sequence_parallel`` what lies between; ``num_processes`` see other tokens than each other.
    """
    trainable, whole = count_trainable(shape, head, adapter, rank, target_modules), adapter == "full"
    frozen, own = 0 if whole else count_parameters(shape, head), share_of(shape, trainable, tensor)
    kept = optimizer_bytes(shape, head, optimizer, adapter=not whole, rank=rank, target_modules=target_modules)
    weights, gradients, states = state_bytes(own, dtype, num_processes, zero_stage, kept * own // max(trainable, 1))
    weights += frozen_bytes(shape, frozen, adapter, dtype) // (num_processes if zero_stage == 3 else 1)
    if offload:
        weights, gradients, states = (0 if zero_stage == 3 else weights), 0, 0
    if zero_stage == 3:
        weights += gathered_bytes(shape, adapter) // tensor
    per_token = activation_bytes_per_token(
        shape,
        adapter=adapter,
        rank=rank,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        deepspeed=zero_stage is not None,
        own_trunk=own_trunk,
        tensor=tensor,
        sequence_parallel=sequence_parallel,
    )
    logits = head_bytes(shape, tokens, dtype, trained=whole, kernels=kernels, tensor=tensor) if head == "lm" else 0
    return MemoryEstimate(
        parameters=trainable + frozen,
        trainable=trainable,
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=tokens * per_token,
        head=logits,
        fresh=fresh,
    )


def count_trainable(
    shape: ModelShape, head: Head, adapter: AdapterKind, rank: int, target_modules: str | Sequence[str]
) -> int:
    """Return the parameters that learn: all, or those of an adapter and of a score's head."""
    if adapter == "full":
        return count_parameters(shape, head)
    return count_adapter(shape, rank, target_modules) + (count_head(shape, head) if head == "score" else 0)


def gathered_bytes(shape: ModelShape, adapter: AdapterKind) -> int:
    """Return what ZeRO-3 gathers for its own computation: the largest layer, with gradients where it learns."""
    return (4 if adapter == "full" else 2) * count_largest_layer(shape)


def share_of(shape: ModelShape, trained: int, tensor: int) -> int:
    """Return how many of the trained parameters each of the processes has that share every layer: norms are whole."""
    if tensor == 1:
        return trained
    whole = sum(block.norms for block in shape.layers) + shape.hidden_size
    return whole + (trained - whole) // tensor


def state_bytes(
    trainable: int, dtype: Dtype, num_processes: int, zero_stage: int | None, kept: int | None = None
) -> tuple[int, int, int]:
    """Return bytes of trained weights, gradients and optimizer states on one process.

    ``kept`` is what the optimizer keeps of all of them; None is AdamW's, eight bytes of each.
    """
    kept = 8 * trainable if kept is None else kept
    if zero_stage is None:
        # Autocast keeps a bfloat16 copy of each float32 weight from its first use to the end of the step; DDP keeps a
        # second set of gradients in its buckets.
        weights = 6 if dtype == "bfloat16" else 4
        return weights * trainable, (8 if num_processes > 1 else 4) * trainable, kept
    low = 2 if dtype == "bfloat16" else 4
    states = kept + (4 * trainable if dtype == "bfloat16" else 0)  # a float32 copy of bfloat16 weights is among them
    shards = [num_processes if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return low * trainable // shards[0], low * trainable // shards[1], states // shards[2]


def frozen_bytes(shape: ModelShape, frozen: int, adapter: AdapterKind, dtype: Dtype) -> int:
    """Return the bytes of weights that are not trained: in 4 bits those of linear maps, the rest in float32."""
    if adapter == "qlora" and frozen:
        quantised = count_linear(shape)
        return round(NF4_BYTES * quantised) + 4 * (frozen - quantised)
    return (2 if dtype == "bfloat16" else 4) * frozen


def activation_bytes_per_token(
    shape: ModelShape,
    *,
    adapter: AdapterKind = "full",
    rank: int = 16,
    dtype: Dtype = "float32",
    gradient_checkpointing: bool = False,
    deepspeed: bool = False,
    own_trunk: bool = False,
    tensor: int = 1,
    sequence_parallel: bool = False,
) -> int:
    """Return what all blocks keep per token for the backward pass.

    With gradient checkpointing that is the input of each block, and everything of the one that is being recomputed.
    """
    regime = _regime(adapter, dtype, deepspeed)
    if own_trunk and regime == "float32" and not gradient_checkpointing:
        regime = "cpu trunk"
    between = tensor if sequence_parallel else 1
    blocks = Counter(shape.layers)
    kept = {block: _block_bytes(block, regime, rank, tensor, between) for block in blocks}
    if not gradient_checkpointing:
        return sum(kept[block] * count for block, count in blocks.items())
    low_residual = dtype == "bfloat16" and (deepspeed or adapter == "lora")
    return shape.num_layers * (2 if low_residual else 4) * shape.hidden_size // between + max(kept.values())


def block_bytes_per_token(
    shape: ModelShape, *, adapter: AdapterKind, rank: int, dtype: Dtype, deepspeed: bool = False
) -> int:
    """Return what the first block keeps per token for its backward pass."""
    return _block_bytes(shape.layers[0], _regime(adapter, dtype, deepspeed), rank)


def _regime(adapter: AdapterKind, dtype: Dtype, deepspeed: bool) -> str:
    if adapter != "full":
        return "adapter float32" if dtype == "float32" else "adapter autocast"
    if dtype == "bfloat16":
        return "bfloat16" if deepspeed else "autocast"
    return "float32"


def _block_bytes(block: Block, regime: str, rank: int, tensor: int = 1, between: int = 1) -> int:
    """Return what a block keeps per token: to the byte for the Llama block, near it for what departs from that.

    ``tensor`` processes share what is inside attention and MLP, ``between`` of them what is before and after.
    """
    saved = _SAVED[regime]
    hidden = block.hidden()
    kept = (saved.hidden * hidden + 8) // between
    if block.feed_forward is not None:
        sparse = block.feed_forward.copies() > 1
        kept += (_EXPERT_WIDTH if sparse else saved.intermediate) * block.feed_forward.width() // tensor
        kept += (
            (_EXPERT_WIDTH // 2) * hidden * (block.feed_forward.copies() - 1) // between
        )  # in and out of each expert
    kept += saved.rank * rank
    kept += _FURTHER_NORM * max(0, block.norms // hidden - 2) * hidden // between
    for mixer in block.mixers:
        query, kv = mixer.widths()
        query, kv = query // tensor, kv // (tensor if kv == query else mixer.parts(tensor))
        kept += saved.query * query + saved.kv * kv + 4 * mixer.heads // tensor
        if mixer.norm_heads():
            kept += saved.norm_query * query + saved.norm_kv * kv + 4 * mixer.norm_heads() // tensor
    return kept


def head_bytes(
    shape: ModelShape,
    tokens: int,
    dtype: Dtype,
    *,
    trained: bool,
    kernels: bool = True,
    chosen: int | None = None,
    tensor: int = 1,
) -> int:
    """Return what the LM head's loss needs: a tile of logits, and float32 gradients of its inputs and its weights.

    Without ``kernels`` up to `STORED_LOGITS` are kept for the backward pass. Methods that learn from their own
    responses pass ``chosen``, the response tokens of a micro-batch, whose logits are kept whole until then. ``tensor``
    processes share the vocabulary.
    """
    vocabulary = shape.vocab_size // tensor
    size = 2 if dtype == "bfloat16" else 4
    if chosen is not None:
        return chosen * vocabulary * size + 4 * shape.hidden_size * (vocabulary if trained else 0)
    if kernels:
        kept = min(tokens, HEAD_TILE_TOKENS) * min(vocabulary, HEAD_TILE_VOCABULARY)
    else:
        kept = min(tokens * vocabulary, STORED_LOGITS)
    return kept * size + 4 * shape.hidden_size * (tokens + (vocabulary if trained else 0))
