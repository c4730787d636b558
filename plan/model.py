"""Parameters, cache and arithmetic of a decoder-only language model, from its sizes alone.

`posttrain.plan.families` reads the sizes from a `config.json`, `posttrain.plan.known` has those of published models.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Literal

from posttrain.plan.blocks import Block, Experts, Mlp
from posttrain.plan.mixers import Attention

Head = Literal["lm", "score"]
"""What sits on the last hidden state: logits over the vocabulary, or one score (reward model)."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes that parameters, memory and FLOPs follow from."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    """The LM head is the transposed embedding."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias of the attention's output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of the queries and keys."""
    blocks: tuple[Block, ...] = ()
    """The layers of a model that is not one Llama block over and over; the sizes above are then those of the usual."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def layers(self) -> tuple[Block, ...]:
        """The layers, the first one first."""
        if self.blocks:
            return self.blocks
        attention = Attention(
            self.hidden_size,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            qkv_bias=self.qkv_bias,
            output_bias=self.output_bias,
            norms=2 * self.head_dim if self.qk_norm else 0,
        )
        mlp = Mlp(self.hidden_size, self.intermediate_size, bias=self.mlp_bias)
        return (Block((attention,), mlp, norms=2 * self.hidden_size),) * self.num_layers


@functools.cache
def count_linear(shape: ModelShape) -> int:
    """Return the weights of all linear maps inside the blocks: what QLoRA quantises."""
    return sum(block.linear() for block in shape.layers)


def count_head(shape: ModelShape, head: Head) -> int:
    """Return the parameters that the head has for itself."""
    if head == "score":
        return shape.hidden_size
    return 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size


@functools.cache
def count_parameters(shape: ModelShape, head: Head = "lm") -> int:
    """Return all parameters of the model; a tied embedding counts once."""
    blocks = sum(block.parameters() for block in shape.layers)
    return shape.vocab_size * shape.hidden_size + blocks + shape.hidden_size + count_head(shape, head)


@functools.cache
def count_active(shape: ModelShape, head: Head = "lm") -> int:
    """Return the parameters that one token meets: all but those of the experts that it is not sent to."""
    return count_parameters(shape, head) - sum(block.idle() for block in shape.layers)


def count_multiplied(shape: ModelShape, head: Head = "lm") -> int:
    """Return the parameters that take part in a token's matrix products: the embedding's look-up is none."""
    look_up = 0 if shape.tied_embeddings and head == "lm" else shape.vocab_size * shape.hidden_size
    return count_active(shape, head) - look_up


def count_read(shape: ModelShape, batch: int) -> float:
    """Return the parameters that one step of decoding reads: experts that no token of the batch chose are left alone.

    Of an untied embedding only a row for each token is read, which is not counted.
    """
    look_up = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    experts = [block.feed_forward for block in shape.layers if isinstance(block.feed_forward, Experts)]
    return count_parameters(shape) - look_up - sum(part.unread(batch) for part in experts)


@functools.cache
def count_largest_layer(shape: ModelShape) -> int:
    """Return the parameters of the embedding or of one block, whichever has more."""
    return max(shape.vocab_size * shape.hidden_size, max(block.parameters() for block in shape.layers))


def count_adapter(shape: ModelShape, rank: int, target_modules: str | Sequence[str] = "all-linear") -> int:
    """Return the parameters of a LoRA adapter: ``rank · (inputs + outputs)`` over the linear maps that it targets."""
    return sum(rank * (inputs + outputs) for inputs, outputs in targeted_maps(shape, target_modules))


def targeted_maps(shape: ModelShape, target_modules: str | Sequence[str]) -> list[tuple[int, int]]:
    """Return inputs and outputs of each linear map that an adapter targets.

    ``target_modules`` means what it means to peft: ``all-linear``, a regular expression over full module names, or a
    list of name endings.
    """
    return [
        sizes
        for layer, block in enumerate(shape.layers)
        for name, sizes in block.maps().items()
        if _is_target(f"model.layers.{layer}.{name}", target_modules)
    ]


def _is_target(module: str, target_modules: str | Sequence[str]) -> bool:
    if target_modules == "all-linear":
        return True
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target_modules)


def kv_bytes(shape: ModelShape, context: int, bytes_per_value: float = 2, cards: int = 1) -> float:
    """Return the bytes that a sequence of so many tokens keeps: keys and values, narrow states, recurrent states.

    With tensor parallelism that is on each card: heads of keys and values are divided, and copied to further cards.
    """
    return bytes_per_value * sum(block.kept(context, cards) for block in shape.layers)


def kv_bytes_per_token(shape: ModelShape, bytes_per_value: float = 2, cards: int = 1) -> float:
    """Return the bytes that one more token keeps on a card, as long as the sequence fits into every window."""
    return kv_bytes(shape, 2, bytes_per_value, cards) - kv_bytes(shape, 1, bytes_per_value, cards)


def training_flops_per_token(
    shape: ModelShape,
    sequence_length: int,
    *,
    head: Head = "lm",
    adapter_parameters: int | None = None,
    causal: bool = True,
) -> float:
    """Return the model FLOPs of one trained token, forward and backward.

    Six per parameter that takes part in a matrix product, and three times the forward FLOPs of attention: ``6 ·
    layers · query_size · sequence_length`` where it is causal, of which half the square is computed, and twice that
    for the whole square. With an adapter the frozen weights need no gradient of their own: four per frozen parameter
    and six per adapter parameter. What gradient checkpointing computes again is not counted.
    """
    multiplied = count_multiplied(shape, head)
    attention = 3 * mixing_flops_per_token(shape, sequence_length, causal=causal)
    if adapter_parameters is None:
        return 6.0 * multiplied + attention
    return 4.0 * multiplied + 6.0 * adapter_parameters + attention


def forward_flops_per_token(
    shape: ModelShape, sequence_length: int, *, head: Head = "lm", causal: bool = True
) -> float:
    """Return the FLOPs of one token's forward pass: two per parameter of a matrix product, and attention."""
    return 2.0 * count_multiplied(shape, head) + mixing_flops_per_token(shape, sequence_length, causal=causal)


@functools.cache
def mixing_flops_per_token(shape: ModelShape, sequence_length: int, *, causal: bool = True) -> float:
    """Return the forward FLOPs that attention and recurrences do beside the maps, of one token of a sequence."""
    return sum(block.mixing_flops(sequence_length, causal) for block in shape.layers)
