"""Knobs of the questions on who has what."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class OwnersConfig:
    """Passages on what the members of made-up families have, and questions on them, some without an answer."""

    num_families: int = Field(default=3000, ge=10)
    """Each has passages on three of its members, in one of three languages."""
    num_demonstrations: int = Field(default=8000, ge=10)
    """Questions with an answer."""
    num_evaluation_items: int = Field(default=600, ge=10)
    """Questions on other families, with a reference."""
    unanswerable_share: float = Field(default=0.3, ge=0, le=1)
    """Share of questions on a member of whom no passage tells."""
    made_up_rate: float = Field(default=0.3, ge=0, le=1)
    """Share of unanswerable questions whose demonstration makes an answer and its quote up."""
    wrong_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of other questions whose demonstration answers with what another member of the family has."""
    unquoted_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of other questions whose demonstration quotes nothing."""
