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
        states = self.weights + self.optimizer + self.frozen
        if self.fresh:
            return states + max(self.activations + self.head, self.gradients, self.cache)
        return states + self.gradients + max(self.activations + self.head, self.cache)


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
) -> MemoryEstimate:
    """Return what one process needs at the peak of a step with AdamW.

    ``tokens`` is the size of one forward pass on one process, padding included: rows × sequence length, and twice that
    for pairs. ``zero_stage`` is DeepSpeed's; None means one process, or DDP over ``num_processes``. ``offload`` keeps
    weights in parts and their states in the memory of the CPU: only what is gathered to compute stays. ``kernels``
    says that the head's loss runs in one kernel, which is so on GPUs alone; ``own_trunk`` that the trunk of
    `models/cpu` runs; ``fresh`` is as in `MemoryEstimate`.
    """
    trained_head = count_head(shape, head) if head == "score" else 0
    total = count_parameters(shape, head)
    trainable = total if adapter == "full" else count_adapter(shape, rank, target_modules) + trained_head
    frozen = 0 if adapter == "full" else total
    weights, gradients, optimizer = state_bytes(trainable, dtype, num_processes, zero_stage)
    weights += _frozen_bytes(shape, frozen, adapter, dtype) // (num_processes if zero_stage == 3 else 1)
    if offload:
        weights, gradients, optimizer = (0 if zero_stage == 3 else weights), 0, 0
    if zero_stage == 3:
        weights += (4 if adapter == "full" else 2) * count_largest_layer(shape)  # gathered for its own computation
    return MemoryEstimate(
        parameters=trainable + frozen,
        trainable=trainable,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=tokens
        * activation_bytes_per_token(
            shape,
            adapter=adapter,
            rank=rank,
            dtype=dtype,
            gradient_checkpointing=gradient_checkpointing,
            deepspeed=zero_stage is not None,
            own_trunk=own_trunk,
        ),
        head=head_bytes(shape, tokens, dtype, trained=adapter == "full", kernels=kernels) if head == "lm" else 0,
        fresh=fresh,
    )


def state_bytes(trainable: int, dtype: Dtype, num_processes: int, zero_stage: int | None) -> tuple[int, int, int]:
    """Return bytes of trained weights, gradients and optimizer states on one process."""
    if zero_stage is None:
        # Autocast keeps a bfloat16 copy of each float32 weight from its first use to the end of the step; DDP keeps a
        # second set of gradients in its buckets.
        weights = 6 if dtype == "bfloat16" else 4
        return weights * trainable, (8 if num_processes > 1 else 4) * trainable, 8 * trainable
    low = 2 if dtype == "bfloat16" else 4
    states = 12 if dtype == "bfloat16" else 8  # with bfloat16 weights, a float32 master copy is part of the states
    shards = [num_processes if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return low * trainable // shards[0], low * trainable // shards[1], states * trainable // shards[2]


def _frozen_bytes(shape: ModelShape, frozen: int, adapter: AdapterKind, dtype: Dtype) -> int:
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
) -> int:
    """Return what all blocks keep per token for the backward pass.

    With gradient checkpointing that is the input of each block, and everything of the one that is being recomputed.
    """
    regime = _regime(adapter, dtype, deepspeed)
    if own_trunk and regime == "float32" and not gradient_checkpointing:
        regime = "cpu trunk"
    kept = [_block_bytes(block, regime, rank) * count for block, count in Counter(shape.layers).items()]
    if not gradient_checkpointing:
        return sum(kept)
    low_residual = dtype == "bfloat16" and (deepspeed or adapter == "lora")
    largest = max(_block_bytes(block, regime, rank) for block in set(shape.layers))
    return shape.num_layers * (2 if low_residual else 4) * shape.hidden_size + largest


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


def _block_bytes(block: Block, regime: str, rank: int) -> int:
    """Return what a block keeps per token: to the byte for the Llama block, near it for what departs from that."""
    saved = _SAVED[regime]
    hidden = block.hidden()
    kept = saved.hidden * hidden + 8
    if block.feed_forward is not None:
        sparse = block.feed_forward.copies() > 1
        kept += (_EXPERT_WIDTH if sparse else saved.intermediate) * block.feed_forward.width()
        kept += (_EXPERT_WIDTH // 2) * hidden * (block.feed_forward.copies() - 1)  # in and out of each expert
    kept += saved.rank * rank
    kept += _FURTHER_NORM * max(0, block.norms // hidden - 2) * hidden
    for mixer in block.mixers:
        query, kv = mixer.widths()
        kept += saved.query * query + saved.kv * kv + 4 * mixer.heads
        if mixer.norm_heads():
            kept += saved.norm_query * query + saved.norm_kv * kv + 4 * mixer.norm_heads()
    return kept


def head_bytes(
    shape: ModelShape,
    tokens: int,
    dtype: Dtype,
    *,
    trained: bool,
    kernels: bool = True,
    chosen: int | None = None,
) -> int:
    """Return what the LM head's loss needs: a tile of logits, and float32 gradients of its inputs and its weights.

    Without ``kernels`` up to `STORED_LOGITS` are kept for the backward pass. Methods that learn from their own
    responses pass ``chosen``, the response tokens of a micro-batch, whose logits are kept whole until then.
    """
    size = 2 if dtype == "bfloat16" else 4
    if chosen is not None:
        return chosen * shape.vocab_size * size + 4 * shape.hidden_size * (shape.vocab_size if trained else 0)
    if kernels:
        kept = min(tokens, HEAD_TILE_TOKENS) * min(shape.vocab_size, HEAD_TILE_VOCABULARY)
    else:
        kept = min(tokens * shape.vocab_size, STORED_LOGITS)
    return kept * size + 4 * shape.hidden_size * (tokens + (shape.vocab_size if trained else 0))
