"""Knobs of the evaluation of a policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema, speed


@schema
class PolicyEvaluationConfig:
    """Scores one policy: held-out loss, and responses to evaluation items."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of a response."""
    max_items: int | None = Field(default=None, ge=1)
    """Evaluate at most this many items, taken evenly over tasks and languages."""
    batch_size: int = speed(64, ge=1)
    """Responses that run at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""
