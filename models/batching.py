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


def begun_alike(rows: Sequence[Sequence[int]], batches: Sequence[list[int]]) -> list[list[int]]:
    """Return the rows of ``batches`` in others that keep together what begins alike, for a model that computes it once.

    None has more tokens to compute than the largest of ``batches`` has, its padding counted.
    """
    numbers = sorted((number for batch in batches for number in batch), key=lambda number: (list(rows[number]), number))
    budget = max((len(batch) * max(len(rows[number]) for number in batch) for batch in batches), default=0)
    made: list[list[int]] = []
    room = 0
    for number in numbers:
        row = rows[number]
        new = len(row) - (_common(rows[made[-1][-1]], row) if made else 0)
        if not made or new > room:
            made.append([])
            new, room = len(row), budget
        made[-1].append(number)
        room -= new
    return made


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return with how many tokens two rows begin alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def pad_rows(
    rows: Sequence[Sequence[int]], padding: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """Return rows as one matrix, and the mask that is 1 where a row has a token and 0 at the padding."""
    tensors = [torch.tensor(row) for row in rows]
    ids_BT = pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side=side)
    ones = [torch.ones_like(row) for row in tensors]
    return ids_BT, pad_sequence(ones, batch_first=True, padding_side=side)
