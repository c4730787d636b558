"""Knobs of the lengths."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class LengthsConfig:
    """How long the prompts of a dataset are."""

    quantiles: list[float] = Field(default_factory=lambda: [0.5, 0.9, 1.0], min_length=1)
    """Shares of a task's prompts, in [0, 1], whose greatest length is told."""
