"""What a stage computes, as passes of tokens through models, and how long they take on a card."""

from __future__ import annotations

import dataclasses
from typing import Literal

from posttrain.plan.cards import Card
from posttrain.plan.memory import Dtype
from posttrain.plan.model import (
    Head,
    ModelShape,
    count_read,
    forward_flops_per_token,
    kv_bytes,
    training_flops_per_token,
)

LAUNCH_SECONDS = 4e-4
"""Least time that a layer takes in one step of decoding on a GPU, of kernels that are started one by one."""


@dataclasses.dataclass(frozen=True)
class Range:
    """A figure that is not known exactly."""

    low: float
    expected: float
    high: float


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """Shares of a card's peaks that passes reach."""

    mfu: Range
    mbu: Range
    source: str


ON_GPU = Utilisation(Range(0.2, 0.35, 0.5), Range(0.15, 0.35, 0.6), "assumed")
ON_CPU = Utilisation(Range(0.15, 0.4, 0.6), Range(0.15, 0.4, 0.7), "assumed")


@dataclasses.dataclass(frozen=True)
class Pass:
    """Tokens that go through one model in one way."""

    what: str
    kind: Literal["train", "forward", "decode"]
    shape: ModelShape
    tokens: float
    """Over the whole stage and all processes."""
    length: int
    """Mean tokens of a sequence, which attention looks back on."""
    head: Head = "lm"
    dtype: Dtype = "float32"
    adapter: int | None = None
    """Parameters of the adapter that is trained; None trains every weight."""
    recomputed: bool = False
    batch: int = 1
    """decode: sequences at once on one process."""

    def flops_per_token(self, causal: bool = True) -> float:
        """Return the model FLOPs of a token."""
        if self.kind == "train":
            return training_flops_per_token(
                self.shape, self.length, head=self.head, adapter_parameters=self.adapter, causal=causal
            )
        return forward_flops_per_token(self.shape, self.length, head=self.head, causal=causal)

    def flops(self, causal: bool = True) -> float:
        """Return the model FLOPs of all tokens."""
        return self.tokens * self.flops_per_token(causal)

    def hardware_flops(self) -> float:
        """Return the FLOPs that are done, those of recomputation included."""
        again = forward_flops_per_token(self.shape, self.length, head=self.head) if self.recomputed else 0.0
        return self.flops() + self.tokens * again

    def seconds(self, card: Card, processes: int, mfu: float, mbu: float, tf32: bool = False) -> float:
        """Return how long the pass takes on so many cards at shares of their peaks."""
        peak = peak_flops(card, self.dtype, tf32) * mfu
        if self.kind != "decode":
            return self.hardware_flops() / (processes * peak)
        steps = self.tokens / (processes * self.batch)
        return steps * self.step_seconds(card, peak, card.bandwidth * mbu)

    def step_seconds(self, card: Card, peak: float, bandwidth: float) -> float:
        """Return how long one token of each sequence of a batch takes."""
        size = 2 if self.dtype == "bfloat16" else 4
        read = count_read(self.shape, self.batch) * size + self.batch * kv_bytes(self.shape, self.length, size)
        floor = 0.0 if card.name == "cpu" else LAUNCH_SECONDS * self.shape.num_layers
        return max(read / bandwidth, self.batch * self.flops_per_token() / peak, floor)


def peak_flops(card: Card, dtype: Dtype, tf32: bool) -> float:
    """Return a card's dense FLOP/s: float32 has a fifteenth of bfloat16's, and half of it where TF32 rounds factors."""
    if dtype == "bfloat16" or card.name == "cpu":
        return card.flops
    return card.flops / (2 if tf32 else 15)
