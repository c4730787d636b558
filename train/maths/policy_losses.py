"""Losses of policies and critics as pure functions.

N tokens of responses.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimates(logps_N: Tensor, reference_logps_N: Tensor, estimator: KlEstimator) -> Tensor:
    """Return one-sample estimates of KL(policy ‖ reference) for tokens drawn from the policy.

    With r = π_ref / π (Schulman 2020, "Approximating KL divergence"): k1 = −log r, unbiased; k2 = ½ (log r)², biased
    with little variance; k3 = r − 1 − log r, unbiased and never negative.
    """
    log_ratio_N = reference_logps_N - logps_N
    if estimator == "k1":
        return -log_ratio_N
    if estimator == "k2":
        return 0.5 * log_ratio_N**2
    return log_ratio_N.exp() - 1 - log_ratio_N


def importance_weights(logps: Tensor, sampler_logps: Tensor, cap: float) -> Tensor:
    """Return what tokens weigh that a sampler drew under log-probabilities of its own: ``min(π / π_sampler, cap)``.

    Truncated importance sampling (Ionides 2008), by the token. The shape is that of the arguments.
    """
    return (logps - sampler_logps).exp().clamp(max=cap)


def clipped_policy_loss(
    logps_N: Tensor, old_logps_N: Tensor, advantages_N: Tensor, clip_range: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of every token, and whether clipping decided it.

    ``-min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)`` with ρ = π / π_old (Schulman et al. 2017, eq. 7). With ``dual_clip`` = c > 1,
    tokens of negative advantage lose no more than ``-c A`` (Ye et al. 2020, eq. 6).
    """
    ratio_N = (logps_N - old_logps_N).exp()
    plain_N = -ratio_N * advantages_N
    clipped_N = -ratio_N.clamp(1 - clip_range, 1 + clip_range) * advantages_N
    loss_N = torch.maximum(plain_N, clipped_N)
    decided_N = clipped_N > plain_N
    if dual_clip is not None:
        bound_N = -dual_clip * advantages_N
        bounded_N = (advantages_N < 0) & (loss_N > bound_N)
        loss_N = torch.where(bounded_N, bound_N, loss_N)
        decided_N = decided_N | bounded_N
    return loss_N, decided_N


def clipped_value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip_range: float | None
) -> tuple[Tensor, Tensor]:
    """Return the loss of every token's value, and whether clipping decided it.

    ``½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²)``, as in the reference implementation of Schulman et al.
    2017; without a range the plain half square.
    """
    plain_N = 0.5 * (values_N - returns_N) ** 2
    if clip_range is None:
        return plain_N, torch.zeros_like(plain_N, dtype=torch.bool)
    near_N = old_values_N + (values_N - old_values_N).clamp(-clip_range, clip_range)
    clipped_N = 0.5 * (near_N - returns_N) ** 2
    return torch.maximum(plain_N, clipped_N), clipped_N > plain_N
