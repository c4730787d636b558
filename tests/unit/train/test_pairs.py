"""Preference pairs of ranked groups."""

from posttrain.train.rows.dataset import Pair, make_pairs


def test_best_worst_takes_the_first_best_and_the_last_worst() -> None:
    assert make_pairs([[2, 1, 3, 3], [1, 1]], "best_worst") == [Pair(0, 1, 3)]


def test_all_takes_every_untied_pair() -> None:
    assert make_pairs([[1, 2, 2]], "all") == [Pair(0, 0, 1), Pair(0, 0, 2)]
