"""Knobs of direct preference optimisation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.stage.errors import did_you_mean
from posttrain.stage.schema import schema, speed
from posttrain.train.config.common import RowsConfig, Sharing

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
_ANY_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses of differences of scores alone, in which the term that other divergences leave cancels."""
_SORTED = ("aot", "aot_unpaired")
LOSS_OPTIONS: dict[str, Any] = {
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "discopop_tau": 0.05,
    "use_weighting": False,
}
"""Fields of TRL's `DPOConfig`, with their defaults, that mean the same where the reference's log-probabilities are sums
computed before."""
_FIELDS = {"f_divergence_type": "divergence", "f_alpha_divergence_coef": "alpha"}
"""What they are called here, where that is not the same."""
REFUSED_OPTIONS = {
    "ld_alpha": "it weighs the tokens of a response apart, but reference log-probabilities are sums over all of them",
    "sync_ref_model": "the reference's log-probabilities were computed once; it cannot follow the policy",
    **{name: f"a knob of its own; set train.dpo.{name}" for name in ("beta", "label_smoothing", "loss_weights")},
    "loss_type": "a knob of its own; set train.dpo.loss",
    "max_length": "rows are cut where they are tokenized; set data.tokenize.max_length",
    "precompute_ref_log_probs": "they always are, by the stage train.reference",
}


@schema
class DpoConfig(RowsConfig):
    """Direct preference optimisation against precomputed reference log-probabilities."""

    held_out: ClassVar[tuple[str, ...]] = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the implicit reward is beta times the log-ratio."""
    loss: list[str] = Field(default_factory=lambda: ["sigmoid"], min_length=1)
    """Losses by TRL's names; several are summed with `loss_weights`."""
    loss_weights: list[float] | None = None
    """Weight of each loss; None weighs all alike."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a preference is the wrong way round."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Pairs made of a K-ranked group."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """TRL `DPOConfig` fields of some losses: `f_divergence_type`, `f_alpha_divergence_coef`, `discopop_tau`,
    `use_weighting`."""
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
            _require_option(name, self.loss_options[name])
        return self

    @model_validator(mode="after")
    def _losses_are_known(self) -> DpoConfig:
        for name in self.loss:
            if name not in LOSSES:
                raise ValueError(f"loss={name}: there is no such loss{did_you_mean(name, LOSSES)}; {', '.join(LOSSES)}")
        if len(set(self.loss)) != len(self.loss):
            raise ValueError(f"loss={self.loss}: a loss is there twice; give it once, with a weight in loss_weights")
        if "exo_pair" in self.loss and not self.label_smoothing:
            raise ValueError("loss=exo_pair takes the logarithm of label_smoothing; set it above 0, such as 0.001")
        return self

    @model_validator(mode="after")
    def _options_fit_the_losses(self) -> DpoConfig:
        divergence = self.loss_options.get("f_divergence_type", "reverse_kl")
        unfit = [name for name in self.loss if name not in _ANY_DIVERGENCE]
        if divergence != "reverse_kl" and unfit:
            raise ValueError(
                f"loss_options.f_divergence_type={divergence} has no {unfit[0]}; "
                f"it goes with {', '.join(_ANY_DIVERGENCE)}"
            )
        if self.loss_options.get("use_weighting") and set(self.loss) & set(_SORTED):
            raise ValueError(f"loss_options.use_weighting weighs pairs, which {' and '.join(_SORTED)} take apart")
        return self

    def options(self) -> dict[str, Any]:
        """Return every option of `LOSS_OPTIONS`, by the names that `PairOptions` has for them."""
        return {_FIELDS.get(name, name): value for name, value in {**LOSS_OPTIONS, **self.loss_options}.items()}

    def weight_of(self) -> dict[str, float]:
        """Return the weight of each loss."""
        return dict(zip(self.loss, self.loss_weights or [1.0] * len(self.loss), strict=True))

    @model_validator(mode="after")
    def _weights_match(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            raise ValueError(f"{len(self.loss)} losses but {len(self.loss_weights)} loss_weights; give one weight each")
        return self


def _require_option(name: str, value: Any) -> None:
    """Raise ValueError for a value that an option of the losses does not take."""
    if name == "f_divergence_type":
        if value not in DIVERGENCES:
            raise ValueError(f"loss_options.{name}={value}: not a divergence; there are {', '.join(DIVERGENCES)}")
    elif name == "use_weighting":
        if not isinstance(value, bool):
            raise ValueError(f"loss_options.{name}={value}: must be true or false")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"loss_options.{name}={value}: must be a number")
    elif name == "discopop_tau" and value <= 0:
        raise ValueError(f"loss_options.{name}={value}: must be above 0, since margins are divided by it")
