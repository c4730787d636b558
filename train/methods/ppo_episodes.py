"""Turn the scores of a rollout into rewards, advantages and returns of its tokens.

N episodes, T response tokens, M tokens of all episodes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posttrain.train.config.ppo import PpoConfig
from posttrain.train.maths.advantages import generalised_advantages, whiten
from posttrain.train.maths.policy_losses import importance_weights, kl_estimates
from posttrain.train.rollouts.episodes import Episode, padded
from posttrain.train.rollouts.metrics import rollout_metrics


def finish_episodes(episodes: list[Episode], config: PpoConfig, kl_coef: float) -> dict[str, float]:
    """Give every token its reward, advantage and return; returns the metrics of the rollout.

    A token's reward is −β times its KL estimate (where the KL is part of the reward), and the last one's also the
    response's score (Ziegler et al. 2019, eq. 2). Where a server sampled, advantages are multiplied by the importance
    weights of its log-probabilities: both terms of the clipped loss are multiples of advantages.
    """
    mask_NT = padded([np.ones_like(episode.logps) for episode in episodes]).bool()
    logps_NT, reference_NT, values_NT = (
        padded([getattr(episode, name) for episode in episodes]) for name in ("logps", "reference_logps", "values")
    )
    penalty_NT = kl_estimates(logps_NT, reference_NT, config.kl.estimator) * mask_NT
    rewards_NT = -kl_coef * penalty_NT if config.kl.place == "reward" else torch.zeros_like(penalty_NT)
    scores_N = torch.tensor([episode.score for episode in episodes], dtype=torch.float32)
    last_N = mask_NT.sum(1) - 1
    rewards_NT[torch.arange(len(episodes)), last_N] += scores_N
    totals_N = rewards_NT.sum(1)
    if config.whiten_rewards:
        rewards_NT = whiten(rewards_NT, mask_NT, shift_mean=False)
    advantages_NT, returns_NT = generalised_advantages(rewards_NT, values_NT, mask_NT, config.gamma, config.lam)
    if config.whiten_advantages:
        advantages_NT = whiten(advantages_NT, mask_NT)
    metrics = {}
    if len(episodes[0].sampler_logps):
        sampler_NT = padded([episode.sampler_logps for episode in episodes])
        weights_NT = importance_weights(logps_NT, sampler_NT, config.importance_cap)
        advantages_NT = advantages_NT * weights_NT
        metrics["policy/sampler_difference"] = float((logps_NT - sampler_NT)[mask_NT].abs().mean())
        metrics["policy/importance"] = float(weights_NT[mask_NT].mean())
    for row, episode in enumerate(episodes):
        size = len(episode.response_ids)
        episode.advantages = advantages_NT[row, :size].numpy().copy()
        episode.returns = returns_NT[row, :size].numpy().copy()
    return metrics | _metrics(episodes, mask_NT, values_NT, returns_NT, totals_N)


def _metrics(
    episodes: list[Episode], mask_NT: Tensor, values_NT: Tensor, returns_NT: Tensor, totals_N: Tensor
) -> dict[str, float]:
    """Return what is logged of a rollout that a critic valued."""
    values_M, returns_M = values_NT[mask_NT].double(), returns_NT[mask_NT].double()
    unexplained = float((returns_M - values_M).var(correction=0))
    spread = float(returns_M.var(correction=0))
    return {
        **rollout_metrics(episodes),
        "objective/rlhf_reward": float(totals_N.mean()),
        "val/explained_variance": 1 - unexplained / spread if spread else 0.0,
    }
