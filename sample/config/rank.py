"""Knobs of ranking a model's own samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import external_function, schema, speed


@schema
class RankConfig:
    """Comparisons of a model's own responses: several samples of each prompt, ranked by a score."""

    num_samples: int = Field(default=4, ge=2)
    """Responses to each prompt."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of a response."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the fewest tokens that hold this probability."""
    scorer: str | None = None
    """One of `posttrain.data.checks.scorers`; None is the prompt's own."""
    function: str | None = external_function()
    """Instead of a scorer: ``package.module:function``; it gets prompt (messages), response and reference, and returns
    a number."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    batch_tokens: int | None = speed(None, ge=1)
    """Fewer run at once where prompts and ``max_new_tokens`` add up to more than this; None is no limit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""

    @model_validator(mode="after")
    def _one_judge(self) -> RankConfig:
        if self.scorer is not None and self.function is not None:
            raise ValueError(f"scorer={self.scorer} and function={self.function}: give one of them")
        return self
