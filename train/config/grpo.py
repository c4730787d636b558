"""Knobs of group relative policy optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import schema
from posttrain.train.config.group import GroupConfig

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]


@schema
class GrpoConfig(GroupConfig):
    """Group relative policy optimisation (Shao et al. 2024) with the losses of TRL; the KL is a term of the loss."""

    loss: LossType = "dapo"
    """Which loss, and what it is divided by: docs/group-training.md has a table."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the rewards of their group, or of the rollout, or not at all."""
    importance_sampling: Literal["token", "sequence"] = "token"
    """Whose ratio of probabilities weighs a token: its own, or the geometric mean over its response (GSPO)."""
    delta: float | None = Field(default=None, gt=0)
    """Highest ratio of a token whose advantage is negative, which has no limit otherwise."""
    off_policy_threshold: float | None = Field(default=None, gt=0)
    """Leave out a response of negative advantage once its mean token has moved by this much, in nats."""

    @model_validator(mode="after")
    def _options_fit_the_loss(self) -> GrpoConfig:
        if self.delta is not None and self.delta <= 1 + (self.clip_range_high or self.clip_range):
            raise ValueError(f"delta={self.delta} must be above 1 + the upper clip range, or it undoes the clipping")
        if self.loss == "luspo" and self.importance_sampling == "token":
            raise ValueError("loss=luspo is defined for importance_sampling=sequence; set that")
        if self.loss == "cispo" and self.clip_range_high is None:
            raise ValueError("loss=cispo cuts ratios at clip_range_high, counted from 0; give one, such as 5.0")
        return self
