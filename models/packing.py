"""Pack short rows into long ones that do not see each other."""

from __future__ import annotations

import bisect
from collections import defaultdict

from posttrain.stage.errors import UsageError


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
