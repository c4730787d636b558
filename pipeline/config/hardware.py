"""What a machine's GPUs bring with them, said once for all stages: `conf/hardware/gpu1.yaml` hands it on to each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class HardwareConfig:
    """Values of ``hardware=NAME``; a recipe's own knob for a stage wins over them, and the command line over both."""

    card: str | None = None
    """What the GPUs are to `posttrain plan`, such as ``h100``; None leaves that to its ``--card``."""
    dtype: Literal["float32", "bfloat16"]
    """Precision in which stages compute; it is part of what they make, and so of their keys."""
    attention: str
    """Implementation of attention in training, as `train.sft.attention`."""
    tf32: bool
    """Whether float32 products of training may round their factors to 10 bits of mantissa."""
    gradient_checkpointing: bool
    """Whether training computes activations again instead of keeping them."""
    micro_batch_size: int = Field(ge=1)
    """Most rows per forward pass of one process in training."""
    decode_batch: int = Field(ge=1)
    """Responses that one process samples at once, in rollouts, rankings and evaluations."""
    scoring_tokens: int = Field(ge=64)
    """Tokens of a forward pass that keeps nothing for a backward pass: references, and the frozen
    models of rollouts."""
