"""Knobs of Kahneman-Tversky optimisation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from posttrain.stage.schema import schema
from posttrain.train.config.common import RowsConfig


@schema
class KtoConfig(RowsConfig):
    """Kahneman-Tversky optimisation of unpaired preferences against precomputed reference log-probabilities."""

    held_out: ClassVar[tuple[str, ...]] = ("loss", "rewards/margins")

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the implicit reward is beta times the log-ratio."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of the losses of desirable rows. Over the rows of each label, the weights of the desirable ones should
    add up to between 1 and 4/3 of those of the others."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of the losses of undesirable rows."""
