"""Pack short rows into long ones that do not see each other."""

from __future__ import annotations

import bisect
from collections import defaultdict

import pyarrow as pa
from datasets import Dataset

from posttrain.stage.errors import UsageError
from posttrain.train.dataset import as_dataset

IGNORED = -100
"""Label of a position that is not trained."""


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Return packs of row indices whose lengths sum to at most ``capacity``.

    Best-fit decreasing (Johnson 1974) over all rows at once: each row, longest first, goes into the fullest pack that
    still takes it. Raises UsageError when a row is longer than a pack.
    """
    packs: list[list[int]] = []
    open_packs: dict[int, list[int]] = defaultdict(list)
    spaces: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[row]
        if length > capacity:
            raise UsageError(
                f"row {row} has {length} tokens, but pack_length={capacity}; raise train.sft.pack_length or lower "
                "data.tokenize.max_length"
            )
        at = bisect.bisect_left(spaces, length)
        if at == len(spaces):
            packs.append([row])
            pack, space = len(packs) - 1, capacity
        else:
            space = spaces[at]
            pack = open_packs[space].pop()
            packs[pack].append(row)
            if not open_packs[space]:
                spaces.pop(at)
        left = space - length
        if left > 0:
            if not open_packs[left]:
                bisect.insort(spaces, left)
            open_packs[left].append(pack)
    return packs


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
