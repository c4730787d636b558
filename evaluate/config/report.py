"""Knobs of the report."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class ReportConfig:
    """Compares stages and writes the report."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    samples: int = Field(default=12, ge=0)
    """Prompts whose responses are shown side by side."""
    items: int = Field(default=10_000, ge=0)
    """Items that the page lets a reader look through, won and lost; 0 leaves the browser out."""
