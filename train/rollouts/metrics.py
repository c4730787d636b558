"""What is logged of any rollout.

N episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from posttrain.train.rollouts.episodes import Episode, padded


def rollout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return what is logged of any rollout, under the field's names."""
    lengths = np.array([len(episode.response_ids) for episode in episodes])
    scores = np.array([episode.score for episode in episodes])
    metrics = {
        "objective/entropy": float(-np.concatenate([episode.logps for episode in episodes]).mean()),
        "objective/scores": float(scores.mean()),
        "objective/scores_std": float(scores.std()),
        "response/length": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/ended": float(np.mean([episode.ended for episode in episodes])),
    }
    if any(episode.reasoning_tokens for episode in episodes):
        metrics["response/reasoning_length"] = float(np.mean([episode.reasoning_tokens for episode in episodes]))
        metrics["response/answered"] = float(np.mean([episode.answered for episode in episodes]))
    if len(episodes[0].reference_logps):
        metrics["objective/kl"] = float(kl_per_response(episodes).mean())
    for name in episodes[0].components:
        metrics[f"objective/{name}"] = float(np.mean([episode.components[name] for episode in episodes]))
    return metrics


def kl_per_response(episodes: Sequence[Episode]) -> Tensor:
    """Return the unbiased one-sample estimate ``N`` of each response's KL to the reference, a sum over its tokens."""
    return (padded([e.logps for e in episodes]) - padded([e.reference_logps for e in episodes])).sum(1)
