"""Held-out loss of a policy: the negative log-likelihood of each row's trained tokens.

Letters of array shapes: B rows of the batch, T tokens (padded on the right), N trained tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.records import IGNORED
from posttrain.models.batching import by_length, pad_rows
from posttrain.models.processes import Rank
from posttrain.models.token_log_probs import backbone_and_head, head_gives_logits, head_log_probs, states_before
from posttrain.sample.shares import shared_out
from posttrain.stage.errors import NonFiniteLossError


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """Summed loss of a row's trained tokens, in nats, and their number."""

    loss: float
    tokens: int


def row_losses(
    rank: Rank,
    work: Path,
    model: PreTrainedModel,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    batch_size: int,
    what: str = "held_out",
) -> list[RowLoss] | None:
    """Return the loss of each row, in the order given, on the first rank and None on the others.

    What is in ``work`` from an earlier attempt, in the journals that ``what`` names, is not computed again. Logits of
    no more than a few hundred tokens are held at once; a model whose logits are more than its output layer's product is
    asked row by row. Raises NonFiniteLossError where a row has none.
    """
    by_head = head_gives_logits(model)

    def make(rows: list[int]) -> list[tuple[float, int]]:
        found = _batch_losses(model, [input_ids[row] for row in rows], [labels[row] for row in rows], by_head)
        for row, of_row in zip(rows, found, strict=True):
            if not math.isfinite(of_row.loss):
                raise NonFiniteLossError(
                    f"{what.replace('_', '-')} row {row}: loss {of_row.loss}; the model's weights are damaged, or "
                    "overflow in this dtype"
                )
        return [(of_row.loss, of_row.tokens) for of_row in found]

    losses = shared_out(rank, work, what, by_length(input_ids, batch_size if by_head else 1), make)
    return None if losses is None else [RowLoss(*loss) for loss in losses]


@torch.inference_mode()
def _batch_losses(
    model: PreTrainedModel, input_ids: list[Sequence[int]], labels: list[Sequence[int]], by_head: bool
) -> list[RowLoss]:
    ids_BT = pad_rows(input_ids, padding=0)[0].to(model.device)
    labels_BT, _ = pad_rows(labels, padding=IGNORED)
    trained_BT = (labels_BT != IGNORED).to(model.device)
    trained_BT[:, 0] = False  # nothing stands before the first token
    if by_head:
        trunk, head = backbone_and_head(model)
        logps_N, _ = head_log_probs(model, head, states_before(trunk, ids_BT, trained_BT), ids_BT[trained_BT])
    else:
        logits_NV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1][trained_BT[:, 1:]].float()
        logps_N = -functional.cross_entropy(logits_NV, ids_BT[trained_BT], reduction="none")
    nll_BT = torch.zeros(ids_BT.shape, dtype=torch.float64, device=model.device)
    nll_BT[trained_BT] = -logps_N.double()
    losses_B, tokens_B = nll_BT.sum(1).tolist(), trained_BT.sum(1).tolist()
    return [RowLoss(loss, tokens) for loss, tokens in zip(losses_B, tokens_B, strict=True)]


def text_bytes(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> int:
    """Return how many bytes of UTF-8 the trained tokens of a row stand for; special tokens are none."""
    trained = [token for token, label in zip(input_ids[1:], labels[1:], strict=True) if label != IGNORED]
    return len(tokenizer.decode(trained, skip_special_tokens=True).encode())


def summarise_losses(
    losses: Sequence[RowLoss], tasks: Sequence[str], languages: Sequence[str], sizes: Sequence[int]
) -> dict[str, Any]:
    """Return the loss per token and per byte, and perplexity, over all rows, per task and per language.

    Every token weighs the same; ``sizes`` are the bytes of each row's trained text (`text_bytes`).
    """
    rows = list(zip(losses, sizes, strict=True))
    return {
        "overall": _token_mean(rows),
        "by_task": _by_group(rows, tasks),
        "by_language": _by_group(rows, languages),
    }


def _by_group(rows: Sequence[tuple[RowLoss, int]], names: Sequence[str]) -> dict[str, Any]:
    groups: dict[str, list[tuple[RowLoss, int]]] = defaultdict(list)
    for row, name in zip(rows, names, strict=True):
        groups[name].append(row)
    return {name: _token_mean(groups[name]) for name in sorted(groups)}


def _token_mean(rows: Sequence[tuple[RowLoss, int]]) -> dict[str, Any]:
    losses = [row for row, _ in rows]
    tokens, size = sum(row.tokens for row in losses), sum(size for _, size in rows)
    loss = sum(row.loss for row in losses) / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss * tokens / math.log(2) / size if size else None,
        "rows": len(losses),
        "tokens": tokens,
    }
