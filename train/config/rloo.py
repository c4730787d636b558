"""Knobs of REINFORCE with a leave-one-out baseline."""

from __future__ import annotations

from posttrain.stage.schema import schema
from posttrain.train.config.group import GroupConfig


@schema
class RlooConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024); the KL is a part of the reward."""

    normalize_advantages: bool = False
    """Give the advantages of a rollout zero mean and unit variance."""
