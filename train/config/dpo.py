"""Knobs of direct preference optimisation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.stage.errors import did_you_mean
from posttrain.stage.schema import schema, speed
from posttrain.train.config.common import Sharing, TrainingConfig

LOSS_OPTIONS = ("f_divergence_type", "f_alpha_divergence_coef", "discopop_tau", "use_weighting")
"""Fields of TRL's `DPOConfig` that mean the same where the reference's log-probabilities are sums computed before."""
REFUSED_OPTIONS = {
    "ld_alpha": "it weighs the tokens of a response apart, but reference log-probabilities are sums over all of them",
    "sync_ref_model": "the reference's log-probabilities were computed once; it cannot follow the policy",
    **{name: f"a knob of its own; set train.dpo.{name}" for name in ("beta", "label_smoothing", "loss_weights")},
    "loss_type": "a knob of its own; set train.dpo.loss",
    "max_length": "rows are cut where they are tokenized; set data.tokenize.max_length",
    "precompute_ref_log_probs": "they always are, by the stage train.reference",
}


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
    """TRL `DPOConfig` fields of some losses: those of `LOSS_OPTIONS`."""
    share_prompts: Sharing = speed("auto")
    """Compute a prompt once for both responses, and no padding: ``auto`` where the model's family can, ``always`` or
    fail, or ``never``."""

    @model_validator(mode="after")
    def _options_fit_precomputed_references(self) -> DpoConfig:
        for name in self.loss_options:
            if name in REFUSED_OPTIONS:
                raise ValueError(f"loss_options.{name}: {REFUSED_OPTIONS[name]}")
            if name not in LOSS_OPTIONS:
                raise ValueError(
                    f"loss_options.{name}: not an option of a loss{did_you_mean(name, LOSS_OPTIONS)}; "
                    f"there are {', '.join(LOSS_OPTIONS)}"
                )
        return self

    @model_validator(mode="after")
    def _weights_match(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            raise ValueError(f"{len(self.loss)} losses but {len(self.loss_weights)} loss_weights; give one weight each")
        return self
