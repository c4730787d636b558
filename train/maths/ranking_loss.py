"""The pairwise loss of reward models as a pure function.

R responses of a micro-batch, P pairs among them, G groups.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def pairwise_ranking_loss(
    rewards_R: Tensor,
    better_P: Tensor,
    worse_P: Tensor,
    weight_P: Tensor,
    rank_gap_P: Tensor,
    num_groups: Tensor | int,
    margin_per_rank: float,
    centering_coefficient: float,
) -> Tensor:
    """Return the mean over groups of the weighted pairwise loss of a reward model.

    Bradley–Terry over all pairs of a ranked group, each weighted 1 / C(K, 2) (Ouyang et al. 2022, eq. 1):
    ``-log σ(r_better - r_worse - margin · gap)``, plus ``c · (r_better + r_worse)²``, which centres the rewards
    (Eisenstein et al. 2023, sec. 3.1).
    """
    better, worse = rewards_R[better_P], rewards_R[worse_P]
    loss_P = -F.logsigmoid(better - worse - margin_per_rank * rank_gap_P)
    loss_P = loss_P + centering_coefficient * (better + worse) ** 2
    return (weight_P * loss_P).sum() / num_groups
