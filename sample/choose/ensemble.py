"""Several reward models as one: their scores combined, and how far they disagree.

Coste et al. (2023), "Reward model ensembles help mitigate overoptimization". M models, N responses.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.sample.config.ensemble import Combine

WAYS: tuple[Combine, ...] = get_args(Combine)


def combined(rewards: ArrayLike, combine: Combine, penalty: float = 0.5) -> NDArray[np.float64]:
    """Return one reward ``N`` for each response from those of all models ``MN``, each in its own standard deviations.

    Raises ValueError without a model.
    """
    rewards_MN = np.asarray(rewards, dtype=np.float64)
    if rewards_MN.ndim != 2 or not len(rewards_MN):
        raise ValueError(f"rewards of shape {rewards_MN.shape}; give a row of rewards for each model")
    if combine == "worst":
        lowest_N: NDArray[np.float64] = rewards_MN.min(axis=0)
        return lowest_N
    mean_N: NDArray[np.float64] = rewards_MN.mean(axis=0)
    return mean_N - penalty * rewards_MN.var(axis=0) if combine == "uncertainty" else mean_N


def disagreement(rewards: ArrayLike) -> NDArray[np.float64]:
    """Return the standard deviation ``N`` of the models' rewards ``MN`` for each response."""
    spread_N: NDArray[np.float64] = np.asarray(rewards, dtype=np.float64).std(axis=0)
    return spread_N
