"""Turn rows into padded tensors.

B rows of a micro-batch, T positions, R responses of all groups of a micro-batch, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.train.dataset import Row
from posttrain.train.packing import IGNORED

Batch = dict[str, Tensor]


def pad_right(sequences: Sequence[Any], value: int) -> Tensor:
    """Return sequences as one int64 tensor, filled up on the right with ``value``."""
    padded = np.full((len(sequences), max(len(sequence) for sequence in sequences)), value, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded)


def collate_sft(rows: list[Row], pad_token_id: int) -> Batch:
    """Return ``input_ids_BT``, ``labels_BT``, ``attention_mask_BT`` of demonstrations."""
    ids = [row["input_ids"] for row in rows]
    return {
        **_bookkeeping(rows, sum(len(sequence) for sequence in ids)),
        "input_ids": pad_right(ids, pad_token_id),
        "labels": pad_right([row["labels"] for row in rows], IGNORED),
        "attention_mask": pad_right([np.ones(len(sequence)) for sequence in ids], 0),
    }


def collate_packs(rows: list[Row], pad_token_id: int, flatten: bool) -> Batch:
    """Return ``input_ids_BT``, ``labels_BT``, ``position_ids_BT`` of packs; padding is a sequence of its own.

    ``flatten`` lays all packs end to end in one row (B = 1), as flash attention wants it.
    """
    bookkeeping = _bookkeeping(rows, sum(len(row["input_ids"]) for row in rows))
    if flatten:
        joined = {
            name: torch.from_numpy(np.concatenate([row[name] for row in rows]).astype(np.int64))[None]
            for name in ("input_ids", "labels", "position_ids")
        }
        return {**bookkeeping, **joined}
    longest = max(len(row["input_ids"]) for row in rows)
    positions = [np.concatenate([row["position_ids"], np.arange(longest - len(row["position_ids"]))]) for row in rows]
    return {
        **bookkeeping,
        "input_ids": pad_right([row["input_ids"] for row in rows], pad_token_id),
        "labels": pad_right([row["labels"] for row in rows], IGNORED),
        "position_ids": pad_right(positions, 0),
    }


def collate_groups(rows: list[Row], pad_token_id: int) -> Batch:
    """Return whole K-ranked groups: every response once, and the untied pairs among them.

    ``input_ids_RT``, ``attention_mask_RT``; ``better_P`` and ``worse_P`` index R; ``rank_gap_P`` ≥ 1; ``weight_P`` is
    1 / C(K, 2) of the pair's group (Ouyang et al. 2022, eq. 1), so that a group weighs the same whatever its K.
    """
    sequences: list[list[int]] = []
    better: list[int] = []
    worse: list[int] = []
    gap: list[float] = []
    weight: list[float] = []
    for row in rows:
        first, ranks = len(sequences), row["ranks"]
        sequences += [[*row["prompt_ids"], *response] for response in row["responses_ids"]]
        for i, rank_i in enumerate(ranks):
            for j, rank_j in enumerate(ranks):
                if rank_i < rank_j:
                    better.append(first + i)
                    worse.append(first + j)
                    gap.append(float(rank_j - rank_i))
                    weight.append(1.0 / math.comb(len(ranks), 2))
    return {
        **_bookkeeping(rows, sum(len(sequence) for sequence in sequences)),
        "input_ids": pad_right(sequences, pad_token_id),
        "attention_mask": pad_right([np.ones(len(sequence)) for sequence in sequences], 0),
        "num_groups": torch.tensor(len(rows)),
        "better": torch.tensor(better, dtype=torch.int64),
        "worse": torch.tensor(worse, dtype=torch.int64),
        "rank_gap": torch.tensor(gap),
        "weight": torch.tensor(weight),
    }


def collate_pairs(rows: list[Row], collate: Callable[[list[Row]], Batch]) -> Batch:
    """Return what TRL's preference collator makes of pairs, with our bookkeeping."""
    batch = collate(rows)
    return {**_bookkeeping(rows, int(batch["attention_mask"].sum())), **batch}


def _bookkeeping(rows: list[Row], num_tokens: int) -> Batch:
    """Return what the trainer takes out of a batch before the model sees it: row indices and the real tokens."""
    return {"row": torch.tensor([row["row"] for row in rows]), "num_tokens": torch.tensor(num_tokens)}
