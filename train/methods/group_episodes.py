"""Episodes whose responses are compared with the others to the same prompt.

N responses, T their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain.data.records import IGNORED
from posttrain.models.token_log_probs import response_batch
from posttrain.train.maths.group_advantages import groups_without_signal
from posttrain.train.rollouts.episodes import Episode, Floats
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
    episodes: Sequence[Episode], pad_token_id: int, step_tokens: int, rollout_tokens: int, with_mask: bool = False
) -> dict[str, Tensor]:
    """Return one micro-batch: ``input_ids_BT`` padded on the right, and ``labels_BT`` of the responses' tokens alone.

    Log-probabilities stand where the token before theirs does, nought elsewhere. ``step_tokens`` and ``rollout_tokens``
    are the response tokens of the optimizer step and of the whole rollout; ``with_mask`` adds ``attention_mask_BT``.
    """
    ids_BT, chosen_BT = response_batch([(e.prompt_ids, e.response_ids) for e in episodes], pad_token_id)
    lengths_B1 = torch.tensor([[episode.length] for episode in episodes])
    batch = {
        "row": torch.tensor([episode.row for episode in episodes]),
        "num_tokens": lengths_B1.sum(),
        "step_tokens": torch.tensor(float(step_tokens)),
        "rollout_tokens": torch.tensor(float(rollout_tokens)),
        "input_ids": ids_BT,
        "labels": ids_BT.masked_fill(~chosen_BT, IGNORED),
        "old_logps": _before([episode.logps for episode in episodes], chosen_BT),
        "advantages": torch.tensor([float(episode.advantages[0]) for episode in episodes]),
    }
    if with_mask:
        batch["attention_mask"] = (torch.arange(ids_BT.shape[1]) < lengths_B1).long()
    if len(episodes[0].reference_logps):
        batch["reference_logps"] = _before([episode.reference_logps for episode in episodes], chosen_BT)
    return batch


def _before(arrays: Sequence[Floats], chosen_BT: Tensor) -> Tensor:
    """Return values of the chosen tokens where the tokens before them stand."""
    at_BT = chosen_BT[:, 1:]
    return torch.zeros(at_BT.shape).masked_scatter(at_BT, torch.from_numpy(np.concatenate(arrays)))
