"""Demonstrations packed into long rows that do not see each other."""

from __future__ import annotations

import pyarrow as pa
from datasets import Dataset

from posttrain.data.records import IGNORED
from posttrain.models.packing import best_fit_decreasing
from posttrain.train.rows.dataset import as_dataset


def pack_demonstrations(rows: Dataset, capacity: int) -> Dataset:
    """Return packs of demonstrations. `position_ids` restart at 0 with each row, which is what keeps rows apart.

    The attention masks of transformers are built from those restarts, for SDPA, eager and flex attention alike
    (`masking_utils.find_packed_sequence_indices`); flash attention takes its sequence boundaries from them. The first
    label of a row is ignored, since it would be predicted from the row before it. A pack's id lists its rows' ids.
    """
    lengths = list(rows["length"])
    packs = best_fit_decreasing(lengths, capacity)
    table = []
    for pack in packs:
        members = [rows[row] for row in pack]
        table.append(
            {
                "id": ", ".join(member["id"] for member in members),
                "input_ids": [token for member in members for token in member["input_ids"]],
                "labels": [label for member in members for label in (IGNORED, *member["labels"][1:])],
                "position_ids": [position for member in members for position in range(member["length"])],
            }
        )
    sums = pa.array([sum(lengths[row] for row in pack) for pack in packs], pa.int64())
    return as_dataset(pa.Table.from_pylist(table, schema=_PACK_SCHEMA), sums)


_IDS = pa.list_(pa.int32())
_PACK_SCHEMA = pa.schema([("id", pa.string()), ("input_ids", _IDS), ("labels", _IDS), ("position_ids", _IDS)])
