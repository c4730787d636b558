"""Knobs of the evaluation of a policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import external_function, schema, speed


@schema
class PolicyEvaluationConfig:
    """Scores one policy: held-out loss, and responses to evaluation items."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of a response."""
    num_samples: int = Field(default=1, ge=1, le=1024)
    """Responses to each item: with several, pass@k and majority vote are told, and exact match is their mean."""
    temperature: float = Field(default=0.0, ge=0)
    """Of sampling; 0 takes the most likely token, of which there is one response alone."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the fewest tokens that hold this probability."""
    system: str | None = None
    """System turn of items that have none."""
    few_shot: int = Field(default=0, ge=0, le=64)
    """Answered examples before each item: training items of the same task and language."""
    function: str | None = external_function()
    """Instead of the items' scorers: ``package.module:function``; it gets prompt (messages), response and reference,
    and returns a number from 0 to 1."""
    max_items: int | None = Field(default=None, ge=1)
    """Evaluate at most this many items, taken evenly over tasks and languages."""
    batch_size: int = speed(64, ge=1)
    """Responses that run at once."""
    batch_tokens: int | None = speed(None, ge=1)
    """Fewer run at once where prompts and ``max_new_tokens`` add up to more than this; None is no limit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""

    @model_validator(mode="after")
    def _samples_differ(self) -> PolicyEvaluationConfig:
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(f"num_samples={self.num_samples}: at temperature=0 they are all alike; raise it")
        return self
