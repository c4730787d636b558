"""Knobs of the story openings."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class OpeningsConfig:
    """Openings of children's stories for a model to continue, half of them sad; no two tell of the same thing."""

    num_prompts: int = Field(default=1000, ge=2)
    """Openings to train on."""
    num_items: int = Field(default=200, ge=2)
    """Held-out openings, of things that no other one tells of."""
