"""Knobs of the reward model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from posttrain.stage.schema import schema, speed
from posttrain.train.config.common import RowsConfig, Sharing


@schema
class RewardConfig(RowsConfig):
    """Pairwise reward model on K-ranked groups: all pairs of a group, each weighted 1 / C(K, 2)."""

    held_out: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin")

    margin_per_rank: float = Field(default=0.0, ge=0)
    """Margin demanded per step of rank difference."""
    centering_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the squared mean reward of a pair, which keeps rewards near zero."""
    share_prompts: Sharing = speed("auto")
    """Compute a prompt once for all its responses, and no padding: ``auto`` where the model's family can, ``always`` or
    fail, or ``never``."""
