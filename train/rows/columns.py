"""Columns of a dataset as arrays, without a Python object for each number of them.

R rows of a dataset.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

Numbers = NDArray[Any]


def numbers_of(rows: Dataset, name: str) -> Numbers:
    """Return a column of numbers ``R``."""
    values: Numbers = rows.data.column(name).to_numpy()
    return values


def lengths_of(rows: Dataset) -> Numbers:
    """Return the tokens of each row ``R``."""
    return numbers_of(rows, "length")


def with_lengths(rows: Dataset, lengths: Numbers) -> Dataset:
    """Return the rows with other lengths."""
    return rows.remove_columns("length").add_column("length", lengths)


def sizes(lists: pa.Array | pa.ChunkedArray) -> Numbers:
    """Return how many elements each list of a column has ``R``."""
    return np.asarray(pc.list_value_length(lists), np.int64)


def over_groups(combine: np.ufunc, values: Numbers, counts: Numbers) -> Numbers:
    """Return what ``combine`` makes of the values of each group, of which there are ``counts``, at least one."""
    combined: Numbers = combine.reduceat(values, np.cumsum(counts) - counts) if len(counts) else values
    return combined


class Lists:
    """A column of lists of numbers, each of which is an array that copies nothing."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in column.chunks]
        self._ends: list[int] = np.cumsum([len(offsets) - 1 for offsets, _ in self._chunks]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Numbers:
        """Return the list of a row."""
        number = bisect.bisect_right(self._ends, row)
        offsets, values = self._chunks[number]
        place = row - (self._ends[number - 1] if number else 0)
        found: Numbers = values[offsets[place] : offsets[place + 1]]
        return found

    def joined(self, rows: Sequence[int]) -> Numbers:
        """Return the lists of some rows, one behind the other."""
        return np.concatenate([self[row] for row in rows])
