"""GRPO's and RLOO's losses as pure functions of log-probabilities, by TRL's names.

B responses of a micro-batch, T positions; what is of a response as a whole is ``B1``, and stands for all its tokens.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

_TEMPERATURES = 1.0, 1.05
"""Of the soft gates of `sapo`, of advantages above zero and others (Gao et al. 2025)."""
_SHAPES, _RATES = (2.0, 3.0), (3.0, 2.0)
"""Of the gamma weights of `vespo`, of advantages from zero on and below (Shen et al. 2026)."""
_LEAST_RATIO, _LARGEST = math.log(1e-8), 20.0
"""Between which the logarithms of those ratios are kept."""


@dataclasses.dataclass(frozen=True)
class GroupOptions:
    """What the losses take beside log-probabilities and advantages."""

    name: str
    clip_low: float
    clip_high: float
    sequence: bool = False
    """Whether one ratio weighs all tokens of a response, the geometric mean of theirs."""
    delta: float | None = None
    off_policy_threshold: float | None = None
    beta: float = 0.0


@dataclasses.dataclass(frozen=True)
class GroupTerms:
    """The losses of tokens ``BT``, or of responses ``B1``, and what is logged of them."""

    losses: Tensor
    metrics: dict[str, Tensor]
    """Of tokens ``BT``, or of responses ``B1``."""


def group_losses(
    logps_BT: Tensor,
    old_BT: Tensor,
    mask_BT: Tensor,
    advantages_B: Tensor,
    options: GroupOptions,
    reference_BT: Tensor | None = None,
) -> GroupTerms:
    """Return the loss of every token, the pull to the reference included.

    ``mask_BT`` is 1 where there is a token of a response; other places have no meaning.
    """
    advantages_B1, log_ratio_BT = advantages_B[:, None], logps_BT - old_BT
    mean_B1 = mean_over_tokens(log_ratio_BT, mask_BT)
    ratio = torch.exp(mean_B1 if options.sequence else log_ratio_BT)
    losses, metrics = _surrogate(ratio, logps_BT, log_ratio_BT, mask_BT, advantages_B1, options)
    if options.off_policy_threshold is not None:
        moved_B1 = -mean_B1.detach()
        losses = losses * ((advantages_B1 >= 0) | (moved_B1 <= options.off_policy_threshold))
    if options.beta and reference_BT is not None:
        gap_BT = reference_BT - logps_BT
        kl_BT = (gap_BT.exp() - gap_BT - 1) * ratio  # corrected for who sampled, as TRL does
        losses = losses + options.beta * kl_BT
        metrics["policy/kl"] = kl_BT.detach()
    return GroupTerms(losses, metrics)


def _surrogate(
    ratio: Tensor, logps_BT: Tensor, log_ratio_BT: Tensor, mask_BT: Tensor, advantages_B1: Tensor, options: GroupOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses, of tokens or of responses, and what is logged of them."""
    if options.name == "cispo":
        weights = ratio.clamp(max=options.clip_high).detach()
        clipped = (ratio > options.clip_high) & (advantages_B1 > 0)
        return -weights * advantages_B1 * logps_BT, {"cispo_clip_ratio": clipped}
    if options.name == "sapo":
        above, below = _TEMPERATURES
        temperatures_B1 = torch.where(advantages_B1 > 0, above, below)
        return -torch.sigmoid(temperatures_B1 * (ratio - 1)) * 4 / temperatures_B1 * advantages_B1, {}
    if options.name == "vespo":
        weights_B1 = gamma_weights(log_ratio_BT, mask_BT, advantages_B1)
        return -weights_B1 * advantages_B1 * logps_BT, {"vespo/phi_seq_mean": weights_B1}
    return clipped_losses(ratio, advantages_B1, options)


def clipped_losses(ratio: Tensor, advantages: Tensor, options: GroupOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses of clipped ratios, of tokens or of responses, and where they are clipped."""
    inside = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    limited = ratio if options.delta is None else ratio.clamp(max=options.delta)
    low = (limited < 1 - options.clip_low) & (advantages < 0)
    high = (limited > 1 + options.clip_high) & (advantages > 0)
    metrics = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "policy/clipfrac": low | high}
    return -torch.min(limited * advantages, inside * advantages), metrics


@torch.no_grad()
def gamma_weights(log_ratio_BT: Tensor, mask_BT: Tensor, advantages_B1: Tensor) -> Tensor:
    """Return ``exp(λ) w^k exp(-λ w)`` of the ratio ``w`` of each response, which is 1 at ``w = 1``."""
    total_B1 = (log_ratio_BT.clamp(-_LARGEST, _LARGEST) * mask_BT).sum(1, keepdim=True)
    log_B1 = total_B1.clamp(_LEAST_RATIO, _LARGEST)
    shape_B1 = torch.where(advantages_B1 >= 0, _SHAPES[0], _SHAPES[1])
    rate_B1 = torch.where(advantages_B1 >= 0, _RATES[0], _RATES[1])
    return (rate_B1 + shape_B1 * log_B1 - rate_B1 * log_B1.exp()).exp().nan_to_num(0.0, 0.0, 0.0)


def mean_over_tokens(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over the tokens of each response, ``B1``."""
    return (values_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)


def reduced(
    losses_BT: Tensor, mask_BT: Tensor, name: str, tokens_of: dict[str, Tensor | float], most_tokens: int
) -> Tensor:
    """Return a micro-batch's part of the loss of a step, which is the sum of such parts.

    ``tokens_of`` are the tokens of the ``step``, the mean tokens of a step of the ``rollout``, and the ``responses`` of
    the step; ``most_tokens`` is the longest that a response may be.
    """
    if name == "rloo":
        return losses_BT.sum() / tokens_of["responses"]
    if name in ("grpo", "sapo"):
        return mean_over_tokens(losses_BT, mask_BT).sum() / tokens_of["responses"]
    if name == "luspo":
        return (losses_BT * mask_BT).sum() / tokens_of["responses"]
    if name == "dr_grpo":
        return (losses_BT * mask_BT).sum() / (tokens_of["responses"] * most_tokens)
    return (losses_BT * mask_BT).sum() / tokens_of["step" if name == "bnpo" else "rollout"]


def response_losses(
    logps_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_B: Tensor, options: GroupOptions
) -> GroupTerms:
    """Return RLOO's loss of every response, ``B1``: its tokens have one ratio, the product of theirs."""
    ratio_B1 = torch.exp(((logps_BT - old_BT) * mask_BT).sum(1, keepdim=True))
    return GroupTerms(*clipped_losses(ratio_B1, advantages_B[:, None], options))
