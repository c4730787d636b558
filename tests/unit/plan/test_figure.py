"""Figures are what their printed formulas say."""

import pytest

from posttrain.plan.figure import figure
from posttrain.plan.page import amount, duration, size


def test_a_figure_is_computed_from_the_formula_that_it_prints() -> None:
    made = figure("x", "B", "2 · layers · max(heads, 3) − 10^2 / two", "source", layers=32, heads=8, two=2, unused=1)
    assert made.value == 2 * 32 * 8 - 50
    assert made.worked() == "2 · 32 · max(8, 3) − 10^2 / 2"
    assert dict(made.numbers) == {"layers": 32, "heads": 8, "two": 2}
    assert made.as_json()["worked"] == made.worked()


def test_a_name_that_begins_another_is_left_alone() -> None:
    made = figure("x", "", "token · token_flops + floor(tokens)", "s", token=2, token_flops=3, tokens=1.5)
    assert (made.value, made.worked()) == (7, "2 · 3 + floor(1.5)")


@pytest.mark.parametrize("formula", ["__import__('os')", "a.b", "a if a else a", "lambda: a"])
def test_a_formula_is_arithmetic_and_nothing_else(formula: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        figure("x", "", formula, "s", a=1)


def test_amounts_for_people() -> None:
    assert [size(512), size(3 << 20), size(1.5 * (1 << 30))] == ["0.5 KiB", "3.0 MiB", "1.5 GiB"]
    assert [duration(0.0012), duration(30), duration(5400), duration(86400 * 3)] == ["1.2 ms", "30 s", "1.5 h", "3 d"]
    shown = {"share": "50.0 %", "$": "$0.50", "B": "0.0 KiB", "/s": "0.5/s", "": "0.5"}
    assert {unit: amount(figure("x", unit, "a", "s", a=0.5)) for unit in shown} == shown
