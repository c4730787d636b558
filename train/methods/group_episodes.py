"""Episodes whose responses are compared with the others to the same prompt.

N responses, T their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain.models.batching import pad_rows
from posttrain.train.maths.group_advantages import groups_without_signal
from posttrain.train.rollouts.episodes import Episode, padded
from posttrain.train.rollouts.metrics import kl_per_response, rollout_metrics

Advantages = Callable[[Tensor], Tensor]
"""Turns the rewards of all responses, group by group, into their advantages."""


def finish_groups(episodes: list[Episode], group_size: int, advantages: Advantages, kl_coef: float) -> dict[str, float]:
    """Give every token the advantage of its response; returns the metrics of the rollout.

    A response's reward is its score, less ``kl_coef`` times its KL to the reference, a sum over its tokens.
    """
    rewards_N = torch.tensor([episode.score for episode in episodes], dtype=torch.float64)
    if kl_coef:
        rewards_N -= kl_coef * kl_per_response(episodes).double()
    for episode, advantage in zip(episodes, advantages(rewards_N).tolist(), strict=True):
        episode.advantages = np.full(len(episode.response_ids), advantage, np.float32)
    return {
        **rollout_metrics(episodes),
        "objective/rlhf_reward": float(rewards_N.mean()),
        "objective/groups_without_signal": groups_without_signal(rewards_N, group_size),
    }


def collate_groups(
    episodes: Sequence[Episode], pad_token_id: int, step_tokens: int, rollout_tokens: int
) -> dict[str, Tensor]:
    """Return one micro-batch as TRL's losses take it: prompts padded on the left, responses on the right.

    ``step_tokens`` and ``rollout_tokens`` are the response tokens of the optimizer step and of the whole rollout.
    """
    prompt_ids, prompt_mask = pad_rows([episode.prompt_ids for episode in episodes], pad_token_id, side="left")
    completion_ids, completion_mask = pad_rows([episode.response_ids for episode in episodes], pad_token_id)
    old_logps_NT = padded([episode.logps for episode in episodes])
    batch = {
        "row": torch.tensor([episode.row for episode in episodes]),
        "num_tokens": prompt_mask.sum() + completion_mask.sum(),
        "step_tokens": torch.tensor(step_tokens),
        "num_items_in_batch": torch.tensor(float(rollout_tokens)),
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "old_per_token_logps": old_logps_NT,
        "old_logps": old_logps_NT.sum(1),
        "advantages": torch.tensor([float(episode.advantages[0]) for episode in episodes]),
    }
    if len(episodes[0].reference_logps):
        batch["ref_per_token_logps"] = padded([episode.reference_logps for episode in episodes])
    return batch
