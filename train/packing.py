"""Pack short rows into long ones that do not see each other.

B packs in a micro-batch, L tokens in a pack.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from typing import Any

import numpy as np
from posttrain.stage.errors import UsageError
from posttrain.train.dataset import Row, SftRows
from torch.utils.data import Dataset

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


class PackedRows(Dataset[Row]):
    """Packs of demonstrations. `position_ids` restart at 0 with each row, which is what keeps rows apart.

    The attention masks of transformers are built from those restarts, for SDPA, eager and flex attention alike
    (`masking_utils.find_packed_sequence_indices`); flash attention takes its sequence boundaries from them.
    """

    def __init__(self, rows: SftRows, capacity: int) -> None:
        self.rows = rows
        self.packs = best_fit_decreasing(rows.lengths(), capacity)
        self.ids = [", ".join(rows.ids[row] for row in pack) for pack in self.packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = [self.rows[row] for row in self.packs[index]]
        return {
            "row": index,
            "input_ids": np.concatenate([row["input_ids"] for row in rows]),
            "labels": np.concatenate([_without_first(row["labels"]) for row in rows]),
            "position_ids": np.concatenate([np.arange(len(row["input_ids"])) for row in rows]),
        }

    def lengths(self) -> list[int]:
        """Return the tokens of every pack."""
        lengths = self.rows.lengths()
        return [sum(lengths[row] for row in pack) for pack in self.packs]


def _without_first(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the labels of one row with its first one ignored: it would be predicted from the row before it."""
    changed = labels.copy()
    changed[0] = IGNORED
    return changed
