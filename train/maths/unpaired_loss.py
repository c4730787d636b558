"""The loss of Kahneman-Tversky optimisation as pure functions.

B rows of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_RATIO, MOST_RATIO = 1.0, 4 / 3
"""Between which the weights of all desirable rows should be to those of the others (Ethayarajh et al. 2024, eq. 8)."""


def unpaired_loss(
    ratios_B: Tensor,
    desirable_B: Tensor,
    reference_point: Tensor | float,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Return the loss of each row, of a policy's log-ratios to its reference (Ethayarajh et al. 2024, eq. 7).

    ``λ_D (1 - σ(β (r - z)))`` for a desirable row and ``λ_U (1 - σ(β (z - r)))`` for another, where ``z`` is the
    reference point, which carries no gradient.
    """
    gains_B = beta * (ratios_B - reference_point)
    weights_B = torch.where(desirable_B, desirable_weight, undesirable_weight).to(ratios_B.dtype)
    return weights_B * torch.sigmoid(torch.where(desirable_B, -gains_B, gains_B))


def reference_point(total: Tensor, count: Tensor) -> Tensor:
    """Return the mean of ``count`` log-ratios of mismatched responses, but no less than 0, since it stands for a KL."""
    return (total / count).clamp(min=0).float()


def weight_ratio(desirable: int, undesirable: int, desirable_weight: float, undesirable_weight: float) -> float:
    """Return the weight of all desirable rows over that of all others; infinite where the others have none."""
    others = undesirable * undesirable_weight
    return desirable * desirable_weight / others if others else float("inf")
