"""Knobs of the evaluation stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema, speed


@schema
class PolicyEvaluationConfig:
    """Scores one policy: held-out loss, and responses to evaluation items."""

    max_new_tokens: int = Field(default=64, ge=1)
    max_items: int | None = Field(default=None, ge=1)
    """Evaluate at most this many items, taken evenly over tasks and languages."""
    batch_size: int = speed(64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"


@schema
class RewardEvaluationConfig:
    """Scores one reward model on held-out comparisons."""

    batch_size: int = speed(64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    confidence: float = Field(default=0.95, gt=0, lt=1)


@schema
class BestOfNConfig:
    """Samples each evaluation item many times, and compares ways of choosing among the samples."""

    num_samples: int = Field(default=32, ge=2, le=1024)
    """Samples of each item; the curve goes up to as many."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=64, ge=1)
    max_items: int | None = Field(default=None, ge=1)
    """Sample at most this many items, taken evenly over tasks and languages."""
    max_risk: float = Field(default=0.05, gt=0, lt=1)
    """Share of wrong answers that the abstention threshold may let through."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"


@schema
class DriftConfig:
    """Samples a policy afresh, and measures what its responses are worth and how far they lie from a reference."""

    num_samples: int = Field(default=4, ge=1, le=1024)
    """Samples of each item."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of both models where they are compared."""
    max_new_tokens: int = Field(default=64, ge=1)
    max_items: int | None = Field(default=None, ge=1)
    """Sample at most this many items, taken evenly over tasks and languages."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    scoring_tokens: int = speed(8192, ge=64)
    """Tokens of a forward pass that scores responses, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"


@schema
class ReportConfig:
    """Compares stages and writes the report."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    samples: int = Field(default=12, ge=0)
    """Prompts whose responses are shown side by side."""
