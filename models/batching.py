"""Token rows as batches: rows of similar length together, padded to one width.

Letters of array shapes: B rows of the batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def by_length(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the indices of rows in batches of similar length, which saves padding.

    The longest go first, so that a batch that does not fit in memory shows at once.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def by_tokens(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the indices of rows in batches of similar length, the longest first, of at most that many padded tokens.

    A row longer than that is a batch of its own.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pad_rows(
    rows: Sequence[Sequence[int]], padding: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """Return rows as one matrix, and the mask that is 1 where a row has a token and 0 at the padding."""
    tensors = [torch.tensor(row) for row in rows]
    ids_BT = pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side=side)
    ones = [torch.ones_like(row) for row in tensors]
    return ids_BT, pad_sequence(ones, batch_first=True, padding_side=side)
