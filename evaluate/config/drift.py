"""Knobs of fresh samples and their distance from a reference."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema, speed


@schema
class DriftConfig:
    """Samples a policy afresh, and measures what its responses are worth and how far they lie from a reference."""

    num_samples: int = Field(default=4, ge=1, le=1024)
    """Samples of each item."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of both models where they are compared."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of a response."""
    max_items: int | None = Field(default=None, ge=1)
    """Sample at most this many items, taken evenly over tasks and languages."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    scoring_tokens: int = speed(8192, ge=64)
    """Tokens of a forward pass that scores responses, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""
