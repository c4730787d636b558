"""Rewards of token sequences under a reward model.

Letters of array shapes: B rows of the batch, T tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from posttrain.sample.batching import by_length, pad_rows
from posttrain.sample.sampling import Sample
from posttrain.sample.select import Prompts, Score
from posttrain.stage.progress import track


def by_reward(model: PreTrainedModel, pad_token_id: int, batch_size: int) -> Score:
    """Return a score that is the raw reward of prompt and sample under a reward model with the sampler's tokenizer."""

    def score(prompts: Prompts, samples: Sequence[Sequence[Sample]]) -> list[list[float]]:
        sequences = [[*prompt, *s.token_ids] for prompt, own in zip(prompts, samples, strict=True) for s in own]
        rewards = iter(score_sequences(model, sequences, pad_token_id, batch_size))
        return [[next(rewards) for _ in own] for own in samples]

    return score


def score_sequences(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, batch_size: int
) -> list[float]:
    """Return the raw reward of each token sequence, in the order given."""
    rewards: dict[int, float] = {}
    for rows in track(by_length(sequences, batch_size), len(sequences), "rewards"):
        batch = _score_batch(model, [sequences[row] for row in rows], pad_token_id)
        rewards.update(zip(rows, batch, strict=True))
    return [rewards[row] for row in range(len(sequences))]


@torch.inference_mode()
def _score_batch(model: PreTrainedModel, sequences: list[Sequence[int]], pad_token_id: int) -> list[float]:
    ids_BT, mask_BT = (tensor.to(model.device) for tensor in pad_rows(sequences, pad_token_id))
    logits_B1 = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    rewards_B: list[float] = logits_B1[:, 0].double().tolist()
    return rewards_B
