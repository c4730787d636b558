"""Two policies on the same items: each item with itself, whatever the order in which they were answered."""

from __future__ import annotations

import pytest

from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.page.compare import Policy, compare


def item(number: int, correct: float, task: str = "sums") -> ScoredItem:
    return ScoredItem(str(number), task, "en", "?", "a", "b", None, "exact", correct, None, True)


def policy(label: str, items: list[ScoredItem]) -> Policy:
    return Policy(label, label, items, None, None, 0)


def test_items_are_paired_by_id() -> None:
    before = [item(number, number % 2) for number in range(100)]
    after = [item(number, 1 - number % 2) for number in reversed(range(100))]
    (row,) = compare(policy("one", before), policy("two", after), 0.95, 2000, 0)
    assert (row["difference"], row["n"], row["lost"], row["won"]) == (0, 100, 50, 50)
    assert (row["low"], row["high"]) == pytest.approx((-0.196, 0.196), abs=0.03)
    (row,) = compare(policy("one", before), policy("two", before[::-1]), 0.95, 2000, 0)
    assert (row["low"], row["high"], row["lost"], row["won"]) == (0, 0, 0, 0)


def test_only_what_both_answered_is_compared_and_a_gain_is_positive() -> None:
    before = [item(1, 0), item(2, 0), item(3, 1), item(4, 0, "names")]
    after = [item(2, 1), item(3, 1), item(4, 1, "names"), item(5, 1)]
    (row,) = compare(policy("one", before), policy("two", after), 0.95, 2000, 0)
    assert (row["n"], row["difference"], row["lost"], row["won"]) == (3, pytest.approx(2 / 3), 0, 2)
    (row,) = compare(policy("one", before), policy("two", after), 0.95, 2000, 0, task="sums")
    assert (row["n"], row["difference"], row["task"]) == (2, 0.5, "sums")
