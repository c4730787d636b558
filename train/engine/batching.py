"""Which rows make which optimizer step, on which rank, in which micro-batch.

The order is a pure function of the seed: rows are shuffled anew each epoch, the stream of epochs is cut into global
batches (which may span two epochs, so that every batch is full), and each global batch is sorted by length before it is
split over ranks and micro-batches. Sorting inside the batch saves padding without biasing any gradient: whatever the
number of ranks or the micro-batch size, a step sees the same rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.stage.errors import UsageError
from posttrain.train.engine.token_batches import Lengths, TokenLimit, balanced, micro_batches_of


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a global batch is laid out: `global_batch_size` = `micro_batch_size` × `world_size` × `accumulation`.

    With a limit of tokens micro-batches have any number of rows; `micro_batch_size` is then that of an evaluation.
    """

    num_rows: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    accumulation: int
    max_steps: int
    balanced: bool = False
    """Whether micro-batches have equal tokens, as far as that goes, instead of rows of similar length: where nothing is
    padded, that takes the least memory, and no rank waits for another."""

    limit: TokenLimit | None = None
    """What bounds the tokens of micro-batches, in place of their rows."""

    def weight(self, rows: Any) -> Any:
        """Return what the mean over a micro-batch's rows counts where the mean of all micro-batches is taken.

        It is 1 unless micro-batches are by tokens. ``rows`` is a number, or a tensor with one.
        """
        return rows * (self.accumulation * self.world_size) / self.global_batch_size

    @property
    def epochs(self) -> float:
        """Passes over the rows in all steps."""
        return self.max_steps * self.global_batch_size / self.num_rows

    @property
    def evaluation_multiple(self) -> int:
        """Rows that an evaluation needs a multiple of, so that all processes have as many full batches."""
        return 1 if self.world_size == 1 else self.micro_batch_size * self.world_size


def plan_batches(
    num_rows: int,
    global_batch_size: int,
    most_per_micro_batch: int,
    world_size: int,
    epochs: float,
    max_steps: int | None,
) -> BatchPlan:
    """Return the layout with the largest micro-batch that divides a rank's share of the global batch.

    Raises UsageError when there are no rows, or the world size does not divide the global batch.
    """
    if num_rows == 0:
        raise UsageError(
            "the training split has no rows; look at accounting.json of the data stages for where they went"
        )
    if global_batch_size % world_size:
        raise UsageError(
            f"global_batch_size={global_batch_size} is not divisible by the {world_size} processes; "
            f"use a multiple of {world_size}"
        )
    share = global_batch_size // world_size
    micro = max(size for size in range(1, min(share, most_per_micro_batch) + 1) if share % size == 0)
    steps = max_steps if max_steps is not None else math.ceil(epochs * num_rows / global_batch_size)
    return BatchPlan(num_rows, global_batch_size, micro, world_size, share // micro, steps)


def by_tokens(
    plan: BatchPlan, most: int | None, lengths: Lengths, sequences: NDArray[np.int64] | None, seed: int
) -> BatchPlan:
    """Return a plan whose micro-batches have ``most`` tokens at most; the plan itself where that is None.

    ``sequences`` of each row are as long as the longest one of a micro-batch, which is ``lengths`` of its row; with
    None a row is ``lengths`` tokens, and nothing is padded.
    """
    if most is None:
        return plan
    limit = TokenLimit(most, sequences)
    accumulation = micro_batches_of(steps_of(plan, lengths, seed), lengths, limit, plan.world_size)
    longest = int(np.max(np.asarray(lengths) * (1 if sequences is None else sequences)))
    rows = min(max(1, most // longest), plan.global_batch_size // plan.world_size)
    return dataclasses.replace(plan, micro_batch_size=rows, accumulation=accumulation, limit=limit)


def steps_of(plan: BatchPlan, lengths: Lengths, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each step, sorted by length."""
    stream = EpochStream(plan.num_rows, seed)
    for _ in range(plan.max_steps):
        yield sorted(stream.take(plan.global_batch_size), key=lambda row: (int(lengths[row]), row))


class StepBatchSampler:
    """Yields this rank's micro-batches, step after step; length is all micro-batches of the training."""

    def __init__(self, plan: BatchPlan, lengths: Lengths, seed: int, rank: int) -> None:
        self.plan = plan
        self.lengths = lengths
        self.seed = seed
        self.rank = rank
        self.batch_size = plan.micro_batch_size
        self.drop_last = True

    def __len__(self) -> int:
        return self.plan.max_steps * self.plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        plan, lengths = self.plan, self.lengths
        count = plan.accumulation * plan.world_size
        for rows in steps_of(plan, lengths, self.seed):
            if plan.limit is not None:
                yield from plan.limit.parts(rows, lengths, count)[self.rank :: plan.world_size]
                continue
            if plan.balanced:
                yield from balanced(rows, lengths, count, plan.micro_batch_size)[self.rank :: plan.world_size]
                continue
            for start in range(self.rank, count, plan.world_size):
                yield rows[start * plan.micro_batch_size : (start + 1) * plan.micro_batch_size]


class EpochStream:
    """The endless stream of shuffled passes over the rows, read from the front."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows = num_rows
        self._seed = seed
        self._epoch = 0
        self._left: NDArray[np.int64] = np.empty(0, np.int64)

    def take(self, count: int) -> list[int]:
        """Return the next rows."""
        taken: list[int] = []
        while len(taken) < count:
            if not len(self._left):
                self._left = np.random.default_rng([self._seed, self._epoch]).permutation(self._num_rows)
                self._epoch += 1
            missing = count - len(taken)
            taken += self._left[:missing].tolist()
            self._left = self._left[missing:]
        return taken
