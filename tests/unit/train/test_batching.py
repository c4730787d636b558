"""The order of rows is a pure function of the seed, whatever the ranks and the micro-batches."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from posttrain.stage.errors import UsageError
from posttrain.train.engine.batching import EpochStream, StepBatchSampler, by_tokens, plan_batches
from posttrain.train.engine.token_batches import TokenLimit, balanced

LENGTHS = [5, 3, 9, 1, 7, 2, 8, 4, 6, 10]


def steps(world_size: int, most: int, seed: int = 3, epochs: float = 2.0, batch: int = 4) -> list[list[int]]:
    """The rows of each optimizer step, over all ranks, in the order of micro-batches."""
    plan = plan_batches(len(LENGTHS), batch, most, world_size, epochs, None)
    ranks = [list(StepBatchSampler(plan, LENGTHS, seed, rank)) for rank in range(world_size)]
    return [
        [row for micro in range(plan.accumulation) for rank in ranks for row in rank[step * plan.accumulation + micro]]
        for step in range(plan.max_steps)
    ]


def test_layout_is_derived_from_the_global_batch() -> None:
    plan = plan_batches(1000, 48, most_per_micro_batch=7, world_size=2, epochs=3, max_steps=None)
    # 48 rows over 2 ranks are 24 each; 6 is the largest divisor of 24 that is at most 7; 24 / 6 = 4 accumulation steps
    assert (plan.micro_batch_size, plan.accumulation) == (6, 4)
    assert plan.max_steps == 63  # 3 * 1000 / 48 = 62.5
    assert plan.epochs == pytest.approx(63 * 48 / 1000)


@pytest.mark.parametrize(("world_size", "most"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)])
def test_each_step_sees_the_same_rows_at_any_world_size_and_micro_batch(world_size: int, most: int) -> None:
    assert [sorted(step) for step in steps(world_size, most)] == [sorted(step) for step in steps(1, 4)]


def test_every_epoch_visits_every_row_once_though_batches_span_epochs() -> None:
    flat = [row for step in steps(1, 4, epochs=2.0) for row in step]
    assert len(flat) == 20
    assert Counter(flat) == dict.fromkeys(range(10), 2)
    # 10 rows in batches of 4: the third step holds the last two of the first epoch and the first two of the second
    assert Counter(flat[:8]).most_common(1)[0][1] == 1


def test_every_epoch_has_an_order_of_its_own() -> None:
    stream = EpochStream(50, seed=3)
    first, second = stream.take(50), stream.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_rows_of_a_step_are_sorted_by_length_so_that_micro_batches_pad_little() -> None:
    for step in steps(2, 1):
        assert [LENGTHS[row] for row in step] == sorted(LENGTHS[row] for row in step)


def test_the_seed_decides_the_order() -> None:
    assert steps(1, 4, seed=3) == steps(1, 4, seed=3)
    assert steps(1, 4, seed=3) != steps(1, 4, seed=4)


def test_a_world_size_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="global_batch_size=10 is not divisible by the 4 processes"):
        plan_batches(100, 10, 8, 4, 1.0, None)


def test_an_empty_training_split_is_refused() -> None:
    with pytest.raises(UsageError, match="no rows"):
        plan_batches(0, 8, 8, 1, 1.0, None)


def test_balanced_micro_batches_by_hand() -> None:
    # longest first, each into the lightest batch with room for it: 10 | 9 | 8, then 8 + 7, 9 + 2 and 10 + 1
    assert balanced([0, 1, 2, 3, 4, 5], [1, 2, 7, 8, 9, 10], 3, 2) == [[3, 2], [5, 0], [4, 1]]


@pytest.mark.parametrize(("world_size", "most"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_balanced_steps_see_the_same_rows_in_full_micro_batches(world_size: int, most: int) -> None:
    plan = dataclasses.replace(plan_batches(len(LENGTHS), 4, most, world_size, 2.0, None), balanced=True)
    ranks = [list(StepBatchSampler(plan, LENGTHS, 3, rank)) for rank in range(world_size)]
    expected = [sorted(step) for step in steps(1, 4)]
    for step in range(plan.max_steps):
        micro = slice(step * plan.accumulation, (step + 1) * plan.accumulation)
        rows = [batch for rank in ranks for batch in rank[micro]]
        assert sorted(row for batch in rows for row in batch) == expected[step]
        assert {len(batch) for batch in rows} == {plan.micro_batch_size}


def test_runs_of_padded_rows_by_hand() -> None:
    # rows of two sequences each: 10 | 9 8 7 | 2 1 take 20, 54 and 8 tokens with 60 at most; 10 9 would take 40
    limit = TokenLimit(60, np.full(6, 2))
    rows, lengths = [0, 1, 2, 3, 4, 5], [1, 2, 7, 8, 9, 10]
    assert limit.needed(rows, lengths) == 2  # 10 9 8 take 60, and 7 2 1 take 42
    # in three parts the largest has 36 at least: 10 | 9 8 | 7 2 1 has 42, 10 9 | 8 7 | 2 1 has 40
    assert limit.parts(rows, lengths, 3) == [[5, 4], [3, 2], [1, 0]]
    assert limit.parts(rows, lengths, 6) == [[5], [4], [3], [2], [1], [0]]


def test_sequences_of_a_row_count_each_with_the_longest_of_its_micro_batch() -> None:
    # 8 sequences of 25 tokens, and 2 of 100: together they would be 10 of 100
    limit = TokenLimit(999, np.array([8, 2]))
    assert limit.needed([0, 1], [25, 100]) == 2
    assert TokenLimit(1000, np.array([8, 2])).needed([0, 1], [25, 100]) == 1


@pytest.mark.parametrize("sequences", [None, np.ones(len(LENGTHS), np.int64)])
@pytest.mark.parametrize(("world_size", "most"), [(1, 12), (1, 20), (2, 12), (2, 3), (1, 1000)])
def test_no_micro_batch_by_tokens_exceeds_them_but_a_row_that_is_longer(
    world_size: int, most: int, sequences: NDArray[np.int64] | None
) -> None:
    seed = 3
    plan = by_tokens(plan_batches(len(LENGTHS), 4, 1, world_size, 2.0, None), most, LENGTHS, sequences, seed)
    ranks = [list(StepBatchSampler(plan, LENGTHS, seed, rank)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {plan.max_steps * plan.accumulation}
    fewest = 0
    for number, step in enumerate(steps(1, 4, seed)):
        micro = slice(number * plan.accumulation, (number + 1) * plan.accumulation)
        parts = [batch for rank in ranks for batch in rank[micro]]
        assert sorted(row for batch in parts for row in batch) == sorted(step)
        for batch in parts:
            own = [LENGTHS[row] for row in batch]
            tokens = sum(own) if sequences is None else len(own) * max(own)
            assert tokens <= max(most, max(LENGTHS[row] for row in step) if sequences is None else 0) or len(batch) == 1
        fewest = max(fewest, -(-sum(LENGTHS[row] for row in step) // most))
    assert plan.accumulation * world_size >= min(fewest, 4)


def test_the_mean_of_weighted_micro_batches_is_that_of_their_rows() -> None:
    # 4 rows as 1 and 3: the mean of 0.5 × 10 and 1.5 × 2 is that of 10, 2, 2, 2
    plan = dataclasses.replace(plan_batches(10, 4, 2, 1, 1.0, None), limit=TokenLimit(9))
    assert (plan.weight(1), plan.weight(3)) == (0.5, 1.5)


def test_micro_batches_with_equally_many_rows_all_weigh_one() -> None:
    plan = plan_batches(1000, 56, 7, 1, 1.0, None)
    assert plan.weight(7) == 1.0
    assert plan.weight(torch.tensor(7)).item() == 1.0
