"""Rows in batches of similar length, as many as fit, each once."""

from __future__ import annotations

import random

from posttrain.models.batching import begun_alike, by_length, by_tokens, pad_rows


def test_batches_by_hand() -> None:
    # longest first: 9 alone; 5 and 4 take two rows of 5; 4, 2 and 1 take three rows of 4
    assert by_tokens([4, 9, 1, 5, 4, 2], 12) == [[1], [3, 0], [4, 5, 2]]
    assert by_tokens([20, 3], 12) == [[0], [1]]
    assert by_tokens([], 12) == []


def test_no_batch_has_more_padded_tokens_than_allowed_and_every_row_is_in_one() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 60) for _ in range(500)]
    batches = by_tokens(lengths, 256)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    assert max(len(batch) * max(lengths[row] for row in batch) for batch in batches) <= 256


def test_batches_of_a_size_begin_with_the_longest() -> None:
    assert by_length([[1], [1, 2, 3], [1, 2]], 2) == [[1, 2], [0]]


def test_padding_stands_on_its_side_and_outside_the_mask() -> None:
    ids, mask = pad_rows([[7, 0], [8]], 0)
    assert (ids.tolist(), mask.tolist()) == ([[7, 0], [8, 0]], [[1, 1], [1, 0]])
    ids, mask = pad_rows([[7, 0], [8]], 5, side="left")
    assert (ids.tolist(), mask.tolist()) == ([[7, 0], [5, 8]], [[1, 1], [0, 1]])


def test_rows_that_begin_alike_run_together_in_batches_that_are_no_larger() -> None:
    one, other = [7] * 20, [5] * 20
    rows = [[*one, 1], [*other, 1, 2], [*one, 2, 2], [*other, 3], [*one, 3], [4]]
    # at most 2 × 22 tokens; after [4], 22 and 1 there is no room for the 21 of the first that begins otherwise
    assert begun_alike(rows, [[1, 2], [0, 3], [4, 5]]) == [[5, 1, 3], [0, 2, 4]]
    # a batch of one row leaves room for no other that differs
    assert begun_alike(rows, [[1], [2]]) == [[1], [2]]
    assert begun_alike(rows, []) == []
