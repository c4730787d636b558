"""Rewards of token sequences under a reward model.

B sequences of a forward pass, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.models.adapters import without_adapter_wrapper
from posttrain.models.batching import begun_alike, pad_rows
from posttrain.models.cpu.llama_layers import is_known, states_at
from posttrain.stage.progress import track


@torch.no_grad()
def score_sequences(
    model: Any, sequences: Sequence[Sequence[int]], pad_token_id: int, batches: Sequence[list[int]]
) -> list[float]:
    """Return the raw reward of each sequence, read at its last token, in the order given.

    ``model`` is a sequence classifier of one output, or an adapter on one; ``batches`` are the numbers of sequences
    that run together, see `models.batching`; on a trunk that computes once what rows begin alike with, those that do.
    """
    inner = without_adapter_wrapper(model)
    device = next(inner.parameters()).device
    rewards = [0.0] * len(sequences)
    if is_known(inner.base_model):
        batches = begun_alike(sequences, batches)
    for rows in track(batches, len(sequences), "rewards"):
        ids_BT, mask_BT = pad_rows([sequences[row] for row in rows], pad_token_id)
        last_BT = torch.arange(ids_BT.shape[1]) == mask_BT.sum(1, keepdim=True) - 1
        last_BH = states_at(inner.base_model, ids_BT.to(device), last_BT.to(device))
        for row, score in zip(rows, inner.score(last_BH).squeeze(-1).double().tolist(), strict=True):
            rewards[row] = score
    return rewards
