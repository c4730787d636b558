"""Knobs of RLOO and GRPO, which compare the responses to one prompt with each other and need no critic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import schema
from posttrain.train.ppo_config import RolloutConfig


@schema
class GroupConfig(RolloutConfig):
    """What RLOO and GRPO have in common."""

    samples_per_prompt: int = Field(default=8, ge=2)
    """Size of the group whose responses are compared with each other."""
    num_iterations: int = Field(default=1, ge=1)
    """Passes over the responses of a rollout."""
    clip_range: float = Field(default=0.2, gt=0)
    """How far below 1 a ratio of probabilities still counts, and above it too unless `clip_range_high` is given."""
    clip_range_high: float | None = Field(default=None, gt=0)
    beta: float = Field(default=0.05, ge=0)
    """Pull towards the model that the stage starts from; 0 does without that model, and logs no KL."""

    @model_validator(mode="after")
    def _alarm_has_its_reference(self) -> GroupConfig:
        if self.beta == 0 and self.alarms.max_kl is not None:
            raise ValueError(
                f"alarms.max_kl={self.alarms.max_kl} needs the reference, which beta=0 does without; set beta > 0"
            )
        return self


@schema
class RlooConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024); the KL is a part of the reward."""

    normalize_advantages: bool = False
    """Give the advantages of a rollout zero mean and unit variance."""


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
