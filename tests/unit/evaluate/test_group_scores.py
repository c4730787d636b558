"""The best of each group, ties included, and which judges do not differ: on rewards that are written out."""

from __future__ import annotations

import random

import pytest

from posttrain.evaluate.measure.group_scores import above_the_others, alike, best_first, chance, summarise_best
from posttrain.evaluate.measure.pair_scores import ScoredGroup


def group(ranks: list[int], rewards: list[float], **about: str) -> ScoredGroup:
    where = {"id": "g", "source": "s", "task": "t", "language": "en"} | about
    return ScoredGroup(**where, ranks=ranks, rewards=rewards, lengths=[1] * len(ranks))


@pytest.mark.parametrize(
    ("ranks", "rewards", "first"),
    [
        ([1, 2, 2, 2], [3, 1, 2, 0], 1.0),
        ([1, 2, 2, 2], [1, 3, 2, 0], 0.0),
        ([1, 2, 2, 2], [3, 3, 2, 0], 0.5),  # a tie for the highest reward
        ([1, 1, 2], [0, 3, 1], 1.0),
    ],
)
def test_the_first_choice_is_right_or_shares_its_place(ranks: list[int], rewards: list[float], first: float) -> None:
    assert best_first(group(ranks, rewards)) == first


def test_ties_lie_above_the_others_and_closer_to_each_other() -> None:
    assert chance(group([1, 1, 2], [0, 0, 0])) == 2 / 3
    assert above_the_others(group([1, 1, 2], [5, 4, 1])) == (1.0, 1.0)
    assert above_the_others(group([1, 1, 2], [9, 4, 1])) == (1.0, 0.0)
    assert above_the_others(group([1, 1, 2], [9, 1, 4])) == (0.0, 0.0)
    assert above_the_others(group([1, 2, 2], [9, 1, 4])) is None


def test_parts_that_differ_from_the_rest_are_told() -> None:
    right, wrong = ([1, 2, 2, 2], [1.0, 0, 0, 0]), ([1, 2, 2, 2], [0.0, 1, 0, 0])
    groups = [group(*right, task=task) for task in "abc" for _ in range(30)]
    groups += [group(*wrong, task=task) for task in "abc" for _ in range(10)]
    groups += [group(*wrong, task="d") for _ in range(10)]
    groups.append(group([1, 1], [0, 1], task="d"))  # a tie as a whole says nothing
    found = summarise_best(groups)
    assert found["overall"]["best"]["value"] == pytest.approx(90 / 130)
    assert found["overall"]["best"]["n"] == 130 and found["overall"]["chance"] == 0.25
    assert {name: part["p_value"] < 0.05 for name, part in found["by_task"].items()} == {
        "a": False,
        "b": False,
        "c": False,
        "d": True,
    }
    assert found["by_source"]["s"]["p_value"] == 1.0


def test_judges_that_do_not_differ_stand_together() -> None:
    rng = random.Random(0)
    questions = [str(n) for n in range(200)]
    strong = {q: float(rng.random() < 0.9) for q in questions}
    again = {q: 1 - strong[q] if q in ("1", "2", "3") else strong[q] for q in questions}
    weak = {q: float(rng.random() < 0.5) for q in questions}
    groups = alike({"weak": weak, "strong": strong, "again": again})
    assert sorted(map(sorted, groups)) == [["again", "strong"], ["weak"]]
    assert groups[-1] == ["weak"]
    assert alike({"strong": strong}) == [["strong"]]
