"""Knobs of choosing among N samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.stage.schema import schema, speed


@schema
class BestOfNConfig:
    """Samples each evaluation item many times, and compares ways of choosing among the samples."""

    num_samples: int = Field(default=32, ge=2, le=1024)
    """Samples of each item; the curve goes up to as many."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the fewest tokens that hold this probability."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of a response."""
    max_items: int | None = Field(default=None, ge=1)
    """Sample at most this many items, taken evenly over tasks and languages."""
    ensemble: EnsembleConfig = Field(default_factory=EnsembleConfig)
    """How several reward models, ``inputs.reward_model`` and ``inputs.reward_model_NAME``, choose together."""
    max_risk: float = Field(default=0.05, gt=0, lt=1)
    """Share of wrong answers that the abstention threshold may let through."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    batch_tokens: int | None = speed(None, ge=1)
    """Fewer run at once where prompts and ``max_new_tokens`` add up to more than this; None is no limit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""
