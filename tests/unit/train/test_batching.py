"""The order of rows is a pure function of the seed, whatever the ranks and the micro-batches."""

import dataclasses
from collections import Counter

import pytest

from posttrain.stage.errors import UsageError
from posttrain.train.engine.batching import EpochStream, StepBatchSampler, balanced, plan_batches

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
    assert balanced([0, 1, 2, 3, 4, 5], [1, 2, 7, 8, 9, 10], 2) == [[3, 2], [5, 0], [4, 1]]


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
