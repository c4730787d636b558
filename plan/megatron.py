"""Activations and utilisation by the formulas that papers report them with, so that figures can be compared."""

from __future__ import annotations

from typing import Literal

from posttrain.plan.model import ModelShape

Recomputation = Literal["none", "selective", "full"]


def megatron_activation_bytes(
    shape: ModelShape, tokens: int, sequence_length: int, recomputation: Recomputation = "selective", parallel: int = 1
) -> float:
    """Return the activations of all layers in 16 bits, with dropout and a GELU MLP of four times the hidden size.

    Korthikanti et al. 2022, eqs. 1 and 2: ``s b h (34 + 5 a s / h)`` a layer, of which selective recomputation (or an
    attention that never keeps its scores) leaves 34 and full recomputation 2; tensor and sequence parallelism divide
    it.
    """
    scores = 5 * shape.num_heads * sequence_length / shape.hidden_size
    per_feature = {"none": 34 + scores, "selective": 34, "full": 2}[recomputation]
    return shape.num_layers * tokens * shape.hidden_size * per_feature / parallel


def utilisation(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Return the share of the peak FLOP/s that a throughput is (model FLOPs utilisation, Chowdhery et al. 2022)."""
    return tokens_per_second * flops_per_token / peak


def card_hours(flops: float, peak: float, mfu: float) -> float:
    """Return the hours that one card needs for so many FLOPs."""
    return flops / (peak * mfu) / 3600
