"""Knobs of direct preference optimisation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import schema
from posttrain.train.config.common import TrainingConfig


@schema
class DpoConfig(TrainingConfig):
    """Direct preference optimisation against precomputed reference log-probabilities."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the implicit reward is beta times the log-ratio."""
    loss: list[str] = Field(default_factory=lambda: ["sigmoid"], min_length=1)
    """TRL loss types; several are summed with `loss_weights`."""
    loss_weights: list[float] | None = None
    """Weight of each loss; None weighs all alike."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a preference is the wrong way round."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Pairs made of a K-ranked group."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Further TRL `DPOConfig` fields of a loss: ``f_divergence_type``, ``discopop_tau``, ``use_weighting`` …"""

    @model_validator(mode="after")
    def _weights_match(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            raise ValueError(f"{len(self.loss)} losses but {len(self.loss_weights)} loss_weights; give one weight each")
        return self
