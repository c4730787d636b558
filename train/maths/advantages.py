"""Advantages of tokens: generalised advantage estimation, and whitening.

B responses, T their token positions; a mask is true where a response has a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 128
"""Positions that one matrix product looks ahead; a response of any length takes T / _BLOCK of them."""


def generalised_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return the advantages and the returns of every token; zero outside the mask.

    A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t (Schulman et al. 2016, eq. 16); the value after the last
    token is zero, since the episode ends there. The return is A_t + V_t.
    """
    values_BT = values_BT * mask_BT
    next_values_BT = torch.cat([values_BT[:, 1:], torch.zeros_like(values_BT[:, :1])], dim=1)
    deltas_BT = (rewards_BT + gamma * next_values_BT - values_BT) * mask_BT
    advantages_BT = _discounted_sums(deltas_BT, gamma * lam) * mask_BT
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def _discounted_sums(deltas_BT: Tensor, discount: float) -> Tensor:
    """Return Σ_l discount^l · delta_{t+l} for every t: a product within each block, a carried sum across them."""
    length = deltas_BT.shape[1]
    sums_BT = torch.empty_like(deltas_BT)
    carried_B = torch.zeros_like(deltas_BT[:, 0])
    for start in reversed(range(0, length, _BLOCK)):
        block_BT = deltas_BT[:, start : start + _BLOCK]
        size = block_BT.shape[1]
        place_T = torch.arange(size, device=deltas_BT.device)
        ahead_TT = place_T[:, None] - place_T[None, :]  # row: where a delta is, column: where it is counted
        powers_TT = torch.where(ahead_TT >= 0, discount ** ahead_TT.clamp(min=0).to(deltas_BT.dtype), 0.0)
        to_end_T = discount ** (size - place_T).to(deltas_BT.dtype)
        sums_BT[:, start : start + size] = block_BT @ powers_TT + carried_B[:, None] * to_end_T
        carried_B = sums_BT[:, start]
    return sums_BT


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Return masked values with unit variance, and zero mean where it is shifted; zero outside the mask.

    The moments are over every masked place, in float64: give it the tokens of all ranks.
    """
    chosen, weight = values.double(), mask.double()
    count = weight.sum().clamp(min=1)
    mean = (chosen * weight).sum() / count
    variance = (weight * (chosen - mean) ** 2).sum() / count
    whitened = (chosen - mean) / (variance + 1e-8).sqrt()
    return ((whitened if shift_mean else whitened + mean) * weight).to(values.dtype)
