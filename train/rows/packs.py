"""Demonstrations packed into long rows that do not see each other.

A pack is kept as the numbers of its rows; its tokens are put together when it is read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from posttrain.data.records import IGNORED
from posttrain.models.packing import best_fit_decreasing
from posttrain.train.rows.columns import Lists, lengths_of, over_groups, sizes
from posttrain.train.rows.dataset import as_dataset

_MEMBERS = "members"


def pack_demonstrations(rows: Dataset, capacity: int) -> Dataset:
    """Return packs of demonstrations. `position_ids` restart at 0 with each row, which is what keeps rows apart.

    The attention masks of transformers are built from those restarts, for SDPA, eager and flex attention alike
    (`masking_utils.find_packed_sequence_indices`); flash attention takes its sequence boundaries from them. The first
    label of a row is ignored, since it would be predicted from the row before it. A pack's id lists its rows' ids.
    """
    lengths = lengths_of(rows)
    members = pa.array(best_fit_decreasing(lengths.tolist(), capacity), pa.list_(pa.int32()))
    names = pa.ListArray.from_arrays(members.offsets, rows.data.column("id").combine_chunks().take(members.values))
    table = pa.table({"id": pc.binary_join(names, ", "), _MEMBERS: members})
    sums = over_groups(np.add, lengths[members.values.to_numpy()], sizes(members))
    tokens, labels = Lists(rows.data.column("input_ids")), Lists(rows.data.column("labels"))
    packs = as_dataset(table, pa.array(sums))
    return packs.with_transform(partial(_put_together, tokens=tokens, labels=labels))


def _put_together(batch: dict[str, list[Any]], tokens: Lists, labels: Lists) -> dict[str, list[Any]]:
    """Return packs with the tokens of their rows, where it is packs that are asked for and not one of their columns."""
    if _MEMBERS not in batch:
        return batch
    packs = batch.pop(_MEMBERS)
    batch["input_ids"] = [tokens.joined(pack).astype(np.int64) for pack in packs]
    batch["labels"] = [_labels(labels, pack) for pack in packs]
    batch["position_ids"] = [np.concatenate([np.arange(len(tokens[row])) for row in pack]) for pack in packs]
    return batch


def _labels(labels: Lists, pack: list[int]) -> Any:
    joined = labels.joined(pack).astype(np.int64)
    starts = np.cumsum([0, *(len(labels[row]) for row in pack[:-1])])
    joined[starts] = IGNORED
    return joined
