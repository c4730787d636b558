"""Knobs of the reference's log-probabilities."""

from __future__ import annotations

from posttrain.stage.schema import schema, speed
from posttrain.train.config.common import Dtype, Sharing


@schema
class ReferenceConfig:
    """Log-probabilities of every response under the frozen reference model, computed once."""

    batch_tokens: int = speed(16384, ge=64)
    """Tokens per forward pass, padding included."""
    dtype: Dtype = "float32"
    """Precision of the model."""
    four_bit: bool = False
    """Quantise the backbone as QLoRA does, so that the policy and its reference start out equal."""
    attention: str = speed("auto")
    """Any implementation that transformers knows; ``auto`` is what it takes for the model."""
    share_prompts: Sharing = speed("auto")
    """Compute a prompt once for all its responses, and no padding: ``auto`` where the model's family can, ``always`` or
    fail, or ``never``."""
