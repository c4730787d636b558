"""Micro-batches by their tokens: as many rows in each as a limit has room for, and equally many in every step.

All ranks run the same number of micro-batches, in every step of a stage, since engines wait for each other in each of
them and the trainer counts them. So the number is the least with which no step exceeds the limit, found before the
training by going through its order of rows.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Lengths = Sequence[int] | NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TokenLimit:
    """How many tokens a micro-batch may have, and how its rows lie in it."""

    most: int
    """A longer row stands alone."""
    sequences: NDArray[np.int64] | None = None
    """Of each row, where all are padded to the longest of the micro-batch; None where rows lie end to end."""

    def parts(self, rows: Sequence[int], lengths: Lengths, count: int) -> list[list[int]]:
        """Return rows, sorted by length, in ``count`` parts, none of them empty, with about the same tokens.

        Those of most tokens come first, so that ranks that take turns have as much to do.
        """
        if self.sequences is None:
            return balanced(rows, lengths, count, len(rows))
        runs = self._fewest_tokens(rows, lengths, count)
        while len(runs) < count:
            runs.sort(key=len)
            widest = runs.pop()
            runs += [widest[: len(widest) // 2], widest[len(widest) // 2 :]]
        return sorted(runs, key=lambda run: (-self._padded(run, lengths), run))

    def needed(self, rows: Sequence[int], lengths: Lengths, at_least: int = 1) -> int:
        """Return how many parts rows need, sorted by length, for none to exceed the limit; one is ``at_least``."""
        most = max(self.most, int(lengths[rows[-1]]) * (1 if self.sequences is None else int(max(self._of(rows)))))
        if self.sequences is not None:
            return max(at_least, len(self._runs(rows, lengths, most)))
        count = max(at_least, -(-sum(int(lengths[row]) for row in rows) // most))
        while _heaviest(balanced(rows, lengths, count, len(rows)), lengths) > most:
            count += 1
        return count

    def _of(self, rows: Sequence[int]) -> NDArray[np.int64]:
        assert self.sequences is not None
        found: NDArray[np.int64] = self.sequences[list(rows)]
        return found

    def _padded(self, rows: Sequence[int], lengths: Lengths) -> int:
        return int(self._of(rows).sum()) * max(int(lengths[row]) for row in rows)

    def _runs(self, rows: Sequence[int], lengths: Lengths, most: int) -> list[list[int]]:
        """Return rows in runs of neighbours, from the longest on, each as long as it goes."""
        runs: list[list[int]] = []
        sequences = longest = 0
        for row, own in zip(reversed(rows), reversed(self._of(rows).tolist()), strict=True):
            if runs and (sequences + own) * longest <= most:
                runs[-1].append(row)
                sequences += own
            else:
                runs.append([row])
                sequences, longest = own, int(lengths[row])
        return runs

    def _fewest_tokens(self, rows: Sequence[int], lengths: Lengths, count: int) -> list[list[int]]:
        """Return at most ``count`` runs, the largest of which has as few tokens as it goes."""
        low, high = 0, self._padded(rows, lengths)
        while low < high:
            middle = (low + high) // 2
            if len(self._runs(rows, lengths, middle)) <= count:
                high = middle
            else:
                low = middle + 1
        return self._runs(rows, lengths, high)


def micro_batches_of(steps: Iterable[Sequence[int]], lengths: Lengths, limit: TokenLimit, world_size: int) -> int:
    """Return the micro-batches of each process in every step; ``steps`` are the rows of each, sorted by length."""
    count = world_size
    for rows in steps:
        count = max(count, limit.needed(rows, lengths, count))
    return -(-count // world_size)


def balanced(rows: Sequence[int], lengths: Lengths, count: int, most_rows: int) -> list[list[int]]:
    """Return ``rows``, sorted by length, in ``count`` batches whose lengths sum to about the same.

    The longest goes first, each into the batch with the fewest tokens of those with fewer than ``most_rows`` (Graham
    1969). Batches of most tokens come first.
    """
    room = [(0, number) for number in range(count)]
    batches: list[list[int]] = [[] for _ in room]
    full = []
    for row in reversed(rows):
        tokens, number = heapq.heappop(room)
        batches[number].append(row)
        tokens += int(lengths[row])
        if len(batches[number]) < most_rows:
            heapq.heappush(room, (tokens, number))
        else:
            full.append((tokens, number))
    return [batches[number] for _, number in sorted((-tokens, number) for tokens, number in (*full, *room))]


def _heaviest(batches: Sequence[Sequence[int]], lengths: Lengths) -> int:
    return max(sum(int(lengths[row]) for row in batch) for batch in batches)
