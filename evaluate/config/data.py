"""Knobs of the page about data."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import external, schema


@schema
class DataPageConfig:
    """Shows what curation made of its sources."""

    samples: int = Field(default=4, ge=0)
    """Rows that are shown for each reason for which rows dropped, changed or were noted."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals of annotators' figures."""
    resamples: int = Field(default=200, ge=100)
    """Bootstrap resamples of the prompts that annotators judged."""
    tokenizer: str | None = external()
    """A ``tokenizer.json``, or a folder that has one, with which rows are counted in tokens; None counts none."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of which the page says how many rows are longer."""
