"""What mixes the tokens of a sequence: attention, latent attention, or a recurrence.

*Maps* are the `nn.Linear` modules, which adapters and 4-bit weights take hold of.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

Maps = dict[str, tuple[int, int]]
"""Module name → inputs and outputs."""


class Mixer(Protocol):
    """What mixes the tokens of a sequence."""

    @property
    def hidden(self) -> int:
        """Width of a token's state."""

    @property
    def heads(self) -> int:
        """How many heads share the work."""

    def maps(self) -> Maps:
        """Return the linear maps."""

    def others(self) -> int:
        """Return the parameters that are in no map: biases, norms, convolutions."""

    def kept(self, context: int) -> int:
        """Return the values that it keeps of a sequence of so many tokens, to generate the next."""

    def parts(self, cards: int) -> int:
        """Return in how many parts what it keeps lies on so many cards that share its heads; more have copies."""

    def mixing_flops(self, context: int, causal: bool) -> float:
        """Return the forward FLOPs of a token beside the maps, averaged over a sequence of so many tokens.

        ``causal`` counts what a token may see, half of the square; otherwise the whole square.
        """

    def widths(self) -> tuple[int, int]:
        """Return the widths of queries and keys, as far as activations go."""

    def norm_heads(self) -> int:
        """Return how many heads of queries and keys are normalised; 0 where none is."""


def visible(context: int, window: int | None, causal: bool) -> float:
    """Return how many tokens a token sees, averaged over a sequence: all or half of them, or a window's."""
    if window is None or context <= window:
        return context / 2 if causal else context
    return window - window * window / (2 * context) if causal else window


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of query heads that share key-value heads (MHA, GQA, MQA), to all tokens or to a window of them."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Tokens that it looks back on; None is all."""
    qkv_bias: bool = False
    output_bias: bool = False
    norms: int = 0
    """Parameters of the norms of queries and keys."""
    sinks: bool = False
    """A logit per head that no token takes."""
    gated: bool = False
    """The map of the queries makes a gate of the same width beside them."""
    fused: bool = False
    """Queries, keys and values come from one map."""

    def maps(self) -> Maps:
        """Return the linear maps."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        output = {"self_attn.o_proj": (query, self.hidden)}
        if self.fused:
            return {"self_attn.qkv_proj": (self.hidden, query + 2 * kv), **output}
        return {
            "self_attn.q_proj": (self.hidden, query * (2 if self.gated else 1)),
            "self_attn.k_proj": (self.hidden, kv),
            "self_attn.v_proj": (self.hidden, kv),
            **output,
        }

    def others(self) -> int:
        """Return the parameters of biases and norms."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return biases + (self.hidden if self.output_bias else 0) + self.norms + self.heads * self.sinks

    def kept(self, context: int) -> int:
        """Return the keys and values of the tokens that are still in sight."""
        return 2 * self.kv_heads * self.head_dim * min(context, self.window or context)

    def parts(self, cards: int) -> int:
        """Return in how many parts keys and values lie: no more than there are heads of them."""
        return min(cards, self.kv_heads)

    def mixing_flops(self, context: int, causal: bool) -> float:
        """Return the FLOPs of scores and weighted sum: two products of two FLOPs each."""
        return 4 * self.heads * self.head_dim * visible(context, self.window, causal)

    def widths(self) -> tuple[int, int]:
        """Return the widths of queries and keys."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim

    def norm_heads(self) -> int:
        """Return how many heads of queries and keys are normalised."""
        return self.heads + self.kv_heads if self.norms else 0


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): keys and values are made of a narrow state, which is what is kept."""

    hidden: int
    heads: int
    query_rank: int | None
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int

    def maps(self) -> Maps:
        """Return the linear maps."""
        query = self.heads * (self.nope_dim + self.rope_dim)
        if self.query_rank is None:
            queries = {"self_attn.q_proj": (self.hidden, query)}
        else:
            queries = {
                "self_attn.q_a_proj": (self.hidden, self.query_rank),
                "self_attn.q_b_proj": (self.query_rank, query),
            }
        return {
            **queries,
            "self_attn.kv_a_proj_with_mqa": (self.hidden, self.kv_rank + self.rope_dim),
            "self_attn.kv_b_proj": (self.kv_rank, self.heads * (self.nope_dim + self.value_dim)),
            "self_attn.o_proj": (self.heads * self.value_dim, self.hidden),
        }

    def others(self) -> int:
        """Return the parameters of the norms of both narrow states."""
        return (self.query_rank or 0) + self.kv_rank

    def kept(self, context: int) -> int:
        """Return the narrow state and the rotated key that all heads share, of each token."""
        return (self.kv_rank + self.rope_dim) * context

    def parts(self, cards: int) -> int:
        """Return one: all heads read the same narrow state, and every card keeps it."""
        return 1

    def mixing_flops(self, context: int, causal: bool) -> float:
        """Return the FLOPs of scores and weighted sum."""
        widths = self.nope_dim + self.rope_dim + self.value_dim
        return 2 * self.heads * widths * visible(context, None, causal)

    def widths(self) -> tuple[int, int]:
        """Return the widths of queries and keys, which are as many here."""
        query = self.heads * (self.nope_dim + self.rope_dim)
        return query, query

    def norm_heads(self) -> int:
        """Return how many heads of queries and keys are normalised: none."""
        return 0


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """Mamba-2: a convolution over a few tokens and a recurrent state of fixed size."""

    hidden: int
    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int
    gate_norm: bool
    """A norm after the gate."""
    conv_bias: bool = True
    bias: bool = False
    """Of both maps."""

    @property
    def inner(self) -> int:
        """Width of the recurrence's inputs."""
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Width of what is convolved: inputs, and the two vectors that write and read the state."""
        return self.inner + 2 * self.groups * self.state

    def maps(self) -> Maps:
        """Return the linear maps."""
        return {
            "mamba.in_proj": (self.hidden, self.inner + self.convolved + self.heads),
            "mamba.out_proj": (self.inner, self.hidden),
        }

    def others(self) -> int:
        """Return the parameters of convolution, decay, skip, norm and biases."""
        convolution = self.convolved * (self.kernel + (1 if self.conv_bias else 0))
        biases = self.inner + self.convolved + self.heads + self.hidden if self.bias else 0
        return convolution + 3 * self.heads + (self.inner if self.gate_norm else 0) + biases

    def kept(self, context: int) -> int:
        """Return the state and the last inputs of the convolution, however long the sequence is."""
        return self.inner * self.state + self.convolved * self.kernel

    def parts(self, cards: int) -> int:
        """Return in how many parts the states lie: no more than there are heads."""
        return min(cards, self.heads)

    def mixing_flops(self, context: int, causal: bool) -> float:
        """Return the FLOPs of the recurrence: decay, write and read each value of the state."""
        return 6 * self.inner * self.state

    def widths(self) -> tuple[int, int]:
        """Return the widths of what takes the place of queries and keys."""
        return self.inner, self.convolved

    def norm_heads(self) -> int:
        """Return how many heads of queries and keys are normalised: none."""
        return 0


@dataclasses.dataclass(frozen=True)
class GatedDelta:
    """Gated delta rule (Qwen3-Next): linear attention whose state is a matrix per value head."""

    hidden: int
    key_heads: int
    heads: int
    """Of values."""
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def _key(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def _value(self) -> int:
        return self.heads * self.value_dim

    def maps(self) -> Maps:
        """Return the linear maps."""
        return {
            "linear_attn.in_proj_qkvz": (self.hidden, 2 * self._key + 2 * self._value),
            "linear_attn.in_proj_ba": (self.hidden, 2 * self.heads),
            "linear_attn.out_proj": (self._value, self.hidden),
        }

    def others(self) -> int:
        """Return the parameters of convolution, decay and norm."""
        return (2 * self._key + self._value) * self.kernel + 2 * self.heads + self.value_dim

    def kept(self, context: int) -> int:
        """Return the matrices and the last inputs of the convolution, however long the sequence is."""
        return self.heads * self.key_dim * self.value_dim + (2 * self._key + self._value) * self.kernel

    def parts(self, cards: int) -> int:
        """Return in how many parts the matrices lie: no more than there are heads."""
        return min(cards, self.heads)

    def mixing_flops(self, context: int, causal: bool) -> float:
        """Return the FLOPs of the recurrence: decay, compare, write and read each value of the matrices."""
        return 8 * self.heads * self.key_dim * self.value_dim

    def widths(self) -> tuple[int, int]:
        """Return the widths of queries and keys."""
        return self._value, self._key

    def norm_heads(self) -> int:
        """Return how many heads of queries and keys are normalised: none."""
        return 0
