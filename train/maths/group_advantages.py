"""Advantages of responses from the rewards of their group: the samples of the same prompt, one behind the other.

N responses, G groups, K responses of a group.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

_EPSILON = 1e-4
"""Added to standard deviations, as TRL does."""


def leave_one_out_advantages(rewards_N: Tensor, group_size: int, normalize: bool = False) -> Tensor:
    """Return every response's reward less the mean reward of the others of its group (Kool et al. 2019).

    With ``normalize``, the advantages of all responses get zero mean and unit variance.
    """
    rewards_GK = rewards_N.view(-1, group_size)
    baselines_GK = (rewards_GK.sum(1, keepdim=True) - rewards_GK) / (group_size - 1)
    advantages_N = (rewards_GK - baselines_GK).reshape(-1)
    if normalize:
        advantages_N = (advantages_N - advantages_N.mean()) / (advantages_N.std() + _EPSILON)
    return advantages_N


def group_relative_advantages(rewards_N: Tensor, group_size: int, scale: Literal["group", "batch", "none"]) -> Tensor:
    """Return every response's reward less the mean reward of its group (Shao et al. 2024, sec. 4.1.2).

    ``scale`` says whose standard deviation divides it: that of its group; that of all responses, so that groups
    of nearly equal rewards are not blown up; or none, as Dr. GRPO has it (Liu et al. 2025).
    """
    rewards_GK = rewards_N.view(-1, group_size)
    advantages_GK = rewards_GK - rewards_GK.mean(1, keepdim=True)
    if scale == "group":
        advantages_GK = advantages_GK / (rewards_GK.std(1, keepdim=True) + _EPSILON)
    elif scale == "batch":
        advantages_GK = advantages_GK / (rewards_N.std() + _EPSILON)
    return advantages_GK.reshape(-1)


def groups_without_signal(rewards_N: Tensor, group_size: int) -> float:
    """Return the share of groups whose responses all got the same reward, which teach nothing."""
    rewards_GK = rewards_N.view(-1, group_size)
    return float((rewards_GK == rewards_GK[:, :1]).all(1).double().mean())
