"""Knobs of contrasts."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class ContrastConfig:
    """Ranks what the passages of a demonstration bear out above what they do not, to train a verifier on."""

    responses: int = Field(default=4, ge=2, le=8)
    """Most responses of a comparison: the one borne out, and made ones that are not."""
    donor_tries: int = Field(default=8, ge=1)
    """How many other rows' responses are looked at for one that differs in a few words alone."""
