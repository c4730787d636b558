"""Two policies on the same items: each item with itself, whatever the order in which they were answered."""

from __future__ import annotations

import pytest

from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.page.compare import Policy, compare, compare_groups


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
    assert (row["lost"], row["won"]) == (0, 0)
    assert row["low"] < 0 < row["high"]  # nothing seen is not called equal


def test_only_what_both_answered_is_compared_and_a_gain_is_positive() -> None:
    before = [item(1, 0), item(2, 0), item(3, 1), item(4, 0, "names")]
    after = [item(2, 1), item(3, 1), item(4, 1, "names"), item(5, 1)]
    (row,) = compare(policy("one", before), policy("two", after), 0.95, 2000, 0)
    assert (row["n"], row["difference"], row["lost"], row["won"]) == (3, pytest.approx(2 / 3), 0, 2)
    (row,) = compare(policy("one", before), policy("two", after), 0.95, 2000, 0, task="sums")
    assert (row["n"], row["difference"], row["task"]) == (2, 0.5, "sums")


def test_translations_of_one_question_are_one_cluster() -> None:
    def asked(question: int, language: int, correct: float) -> ScoredItem:
        alone = item(question * 12 + language, correct)
        return alone._replace(language=f"l{language}", group=f"q{question}")

    before = [asked(question, language, 0) for question in range(20) for language in range(12)]
    after = [asked(question, language, float(question < 3)) for question in range(20) for language in range(12)]
    (row,) = compare(policy("one", before), policy("two", after), 0.95, 2000, 0)
    assert (row["n"], row["clusters"], row["won"]) == (240, 20, 36)
    assert row["p_value"] == 0.25  # three questions, not 36 items: of eight patterns of signs two are as far from zero
    assert row["low"] <= 0 and row["detectable"] > row["difference"]


def test_p_values_of_tasks_are_adjusted_for_their_number() -> None:
    def answers(correct: float) -> list[ScoredItem]:
        return [item(t * 6 + n, correct if t == 0 else n % 2, f"task{t}") for t in range(5) for n in range(6)]

    rows = compare_groups(policy("one", answers(0)), policy("two", answers(1)), "task", 0.95, 2000, 0)
    assert [row["p_value"] for row in rows] == [2 / 64, 1, 1, 1, 1]
    assert [row["adjusted"] for row in rows] == [pytest.approx(10 / 64), 1, 1, 1, 1]
