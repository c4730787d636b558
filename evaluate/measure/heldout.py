"""Held-out loss of a policy: the negative log-likelihood of each row's trained tokens.

Letters of array shapes: B rows of the batch, T tokens (padded on the right), V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from posttrain.data.records import IGNORED
from posttrain.models.batching import by_length, pad_rows
from posttrain.stage.progress import track


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """Summed loss of a row's trained tokens, in nats, and their number."""

    loss: float
    tokens: int


def row_losses(
    model: PreTrainedModel, input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], batch_size: int
) -> list[RowLoss]:
    """Return the loss of each row, in the order given."""
    losses: dict[int, RowLoss] = {}
    for rows in track(by_length(input_ids, batch_size), len(input_ids), "held-out loss"):
        batch = _batch_losses(model, [input_ids[row] for row in rows], [labels[row] for row in rows])
        losses.update(zip(rows, batch, strict=True))
    return [losses[row] for row in range(len(input_ids))]


@torch.inference_mode()
def _batch_losses(model: PreTrainedModel, input_ids: list[Sequence[int]], labels: list[Sequence[int]]) -> list[RowLoss]:
    ids_BT, mask_BT = (tensor.to(model.device) for tensor in pad_rows(input_ids, padding=0))
    labels_BT, _ = pad_rows(labels, padding=IGNORED)
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    targets_BT = labels_BT[:, 1:].to(model.device)
    trained_BT = targets_BT != IGNORED
    nll_BT = torch.zeros(targets_BT.shape, dtype=torch.float64, device=model.device)
    nll_BT[trained_BT] = functional.cross_entropy(
        logits_BTV[:, :-1][trained_BT].float(), targets_BT[trained_BT], reduction="none"
    ).double()
    losses_B, tokens_B = nll_BT.sum(1).tolist(), trained_BT.sum(1).tolist()
    return [RowLoss(loss, tokens) for loss, tokens in zip(losses_B, tokens_B, strict=True)]


def summarise_losses(losses: Sequence[RowLoss], tasks: Sequence[str], languages: Sequence[str]) -> dict[str, Any]:
    """Return loss per token and perplexity over all rows, per task and per language; every token weighs the same."""
    return {
        "overall": _token_mean(losses),
        "by_task": _by_group(losses, tasks),
        "by_language": _by_group(losses, languages),
    }


def _by_group(losses: Sequence[RowLoss], names: Sequence[str]) -> dict[str, Any]:
    groups: dict[str, list[RowLoss]] = defaultdict(list)
    for loss, name in zip(losses, names, strict=True):
        groups[name].append(loss)
    return {name: _token_mean(groups[name]) for name in sorted(groups)}


def _token_mean(losses: Sequence[RowLoss]) -> dict[str, Any]:
    tokens = sum(row.tokens for row in losses)
    loss = sum(row.loss for row in losses) / tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "rows": len(losses), "tokens": tokens}
