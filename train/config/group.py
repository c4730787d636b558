"""Knobs of methods that compare the responses to one prompt with each other and need no critic."""

from __future__ import annotations

from pydantic import Field, model_validator

from posttrain.stage.schema import schema
from posttrain.train.config.rollout import RolloutConfig


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
    """How far above 1 a ratio of probabilities still counts; None is as far as below."""
    beta: float = Field(default=0.05, ge=0)
    """Pull towards the model that the stage starts from; 0 does without that model, and logs no KL."""

    @model_validator(mode="after")
    def _alarm_has_its_reference(self) -> GroupConfig:
        if self.beta == 0 and self.alarms.max_kl is not None:
            raise ValueError(
                f"alarms.max_kl={self.alarms.max_kl} needs the reference, which beta=0 does without; set beta > 0"
            )
        return self
