"""Losses of preference pairs as pure functions of log-probabilities, by TRL's names.

P pairs of a micro-batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_LARGEST_EXPONENT = 80.0
"""Of an alpha divergence, so that its exponential stays a float32."""


@dataclasses.dataclass(frozen=True)
class PairScores:
    """What a policy and its reference say of the responses of pairs: sums over the tokens of each, ``P``."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    weights: Tensor | None = None
    """What the losses of pairs are multiplied by (Zhou et al. 2024, eq. 2); None leaves them as they are."""

    def only(self, counted_P: Tensor) -> PairScores:
        """Return the scores of some pairs."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept: dict[str, Any] = {name: None if part is None else part[counted_P] for name, part in parts.items()}
        return PairScores(**kept)


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """What the losses take beside the scores."""

    beta: float
    label_smoothing: float = 0.0
    divergence: str = "reverse_kl"
    """Whose derivative turns a ratio of probabilities into a score (Wang et al. 2024)."""
    alpha: float = 0.5
    """Of the alpha divergence."""
    discopop_tau: float = 0.05


@dataclasses.dataclass(frozen=True)
class _Terms:
    """What losses are made of: log-ratios to the reference and the scores that a divergence makes of them."""

    scores: PairScores
    options: PairOptions

    @property
    def beta(self) -> float:
        return self.options.beta

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        return self.scores.chosen - self.scores.ref_chosen, self.scores.rejected - self.scores.ref_rejected

    @property
    def diverged(self) -> tuple[Tensor, Tensor]:
        chosen_P, rejected_P = self.ratios
        return divergence_score(chosen_P, self.options), divergence_score(rejected_P, self.options)

    @property
    def margin(self) -> Tensor:
        chosen_P, rejected_P = self.diverged
        return chosen_P - rejected_P

    @property
    def margin_per_token(self) -> Tensor:
        chosen_P, rejected_P = self.diverged
        tokens_P, others_P = self.scores.chosen_tokens.clamp(min=1), self.scores.rejected_tokens.clamp(min=1)
        return chosen_P / tokens_P - rejected_P / others_P


def divergence_score(ratio_P: Tensor, options: PairOptions) -> Tensor:
    """Return the derivative of a divergence at a ratio of probabilities, whose logarithm is given."""
    if options.divergence == "forward_kl":
        return 1 - torch.exp(-ratio_P)
    if options.divergence == "js_divergence":
        return math.log(2) + logsigmoid(ratio_P)
    power = options.alpha - 1
    if options.divergence == "alpha_divergence" and abs(power) >= 1e-6:  # at 1 it is the reverse KL
        return (torch.exp((power * ratio_P).float().clamp(max=_LARGEST_EXPONENT)) - 1).to(ratio_P.dtype) / power
    return ratio_P


def _exo(terms: _Terms) -> Tensor:
    """Ji et al. 2024, eq. 16."""
    wrong, margin_P = terms.options.label_smoothing, terms.beta * terms.margin
    right_P = torch.sigmoid(margin_P) * (logsigmoid(margin_P) - math.log1p(-wrong))
    return right_P + torch.sigmoid(-margin_P) * (logsigmoid(-margin_P) - math.log(wrong))


def _nca(terms: _Terms) -> Tensor:
    chosen_P, rejected_P = (terms.beta * ratio_P for ratio_P in terms.ratios)
    return -logsigmoid(chosen_P) - 0.5 * logsigmoid(-chosen_P) - 0.5 * logsigmoid(-rejected_P)


def _robust(terms: _Terms) -> Tensor:
    wrong, margin_P = terms.options.label_smoothing, terms.beta * terms.margin
    return (-(1 - wrong) * logsigmoid(margin_P) + wrong * logsigmoid(-margin_P)) / (1 - 2 * wrong)


def _bco(terms: _Terms) -> Tensor:
    chosen_P, rejected_P = terms.ratios
    return -logsigmoid(terms.beta * chosen_P) - logsigmoid(-terms.beta * rejected_P)


def _sppo(terms: _Terms) -> Tensor:
    """Wu et al. 2024, eq. 4.7, where the better response always wins."""
    chosen_P, rejected_P = terms.ratios
    return (chosen_P - 0.5 / terms.beta) ** 2 + (rejected_P + 0.5 / terms.beta) ** 2


def _aot(terms: _Terms) -> Tensor:
    scores = terms.scores
    return _smoothed(
        (scores.chosen - scores.rejected).sort().values - (scores.ref_chosen - scores.ref_rejected).sort().values,
        terms.options,
    )


def _aot_unpaired(terms: _Terms) -> Tensor:
    chosen_P, rejected_P = terms.ratios
    return _smoothed(chosen_P.sort().values - rejected_P.sort().values, terms.options)


def _smoothed(margin_P: Tensor, options: PairOptions) -> Tensor:
    right_P, wrong_P = (-logsigmoid(sign * options.beta * margin_P) for sign in (1, -1))
    return right_P * (1 - options.label_smoothing) + wrong_P * options.label_smoothing


def _apo_zero(terms: _Terms) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 7."""
    chosen_P, rejected_P = terms.ratios
    return 1 - torch.sigmoid(terms.beta * chosen_P) + torch.sigmoid(terms.beta * rejected_P)


def _apo_down(terms: _Terms) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 8."""
    chosen_P, rejected_P = terms.ratios
    return torch.sigmoid(terms.beta * chosen_P) + 1 - torch.sigmoid(terms.beta * (chosen_P - rejected_P))


def _discopop(terms: _Terms) -> Tensor:
    """Lu et al. 2024, eq. 5."""
    margin_P = terms.beta * terms.margin
    share_P = torch.sigmoid(margin_P / terms.options.discopop_tau)
    return -logsigmoid(margin_P) * (1 - share_P) + torch.exp(-margin_P) * share_P


def _sft(terms: _Terms) -> Tensor:
    scores = terms.scores
    return (-scores.chosen.sum() / scores.chosen_tokens.sum().clamp(min=1)).expand(len(scores.chosen))


PAIR_LOSSES: Mapping[str, Callable[[_Terms], Tensor]] = {
    "sigmoid": lambda terms: -logsigmoid(terms.beta * terms.margin),
    "hinge": lambda terms: torch.relu(1 - terms.beta * terms.margin),
    "ipo": lambda terms: (terms.margin_per_token - 1 / (2 * terms.beta)) ** 2,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "robust": _robust,
    "bco_pair": _bco,
    "sppo_hard": _sppo,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
    "sigmoid_norm": lambda terms: -logsigmoid(terms.beta * terms.margin_per_token),
}
"""Losses by name, each of every pair; those of `sft` and `aot` are of the pairs of a micro-batch together."""


def pair_losses(scores: PairScores, weight_of: Mapping[str, float], options: PairOptions) -> Tensor:
    """Return the weighted sum of some losses of each pair."""
    terms = _Terms(scores, options)
    losses_P = sum(
        (weight * PAIR_LOSSES[name](terms) for name, weight in weight_of.items()), torch.zeros_like(scores.chosen)
    )
    return losses_P if scores.weights is None else losses_P * scores.weights
