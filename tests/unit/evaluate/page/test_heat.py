"""Tables of shades: what the cells hold, and as many policies beside each other as a page has room for."""

from __future__ import annotations

from typing import Any

from posttrain.evaluate.page.compare import Policy
from posttrain.evaluate.page.heat import Heat, Shade, heat_maps


def policy(label: str, value: float, preference: float | None, languages: str = "de en") -> Policy:
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    liked = None if preference is None else {"value": preference, "low": -1.0, "high": 1.0}
    cell = {"exact_match": figure, "preference": liked}
    figures: dict[str, Any] = {"by_task_and_language": {"sums": dict.fromkeys(languages.split(), cell)}}
    return Policy(label, label, [], figures, None, 0)


def test_cells_hold_a_figure_with_its_interval_and_how_deep_it_is() -> None:
    found = heat_maps([policy("a", 0.25, None, "en"), policy("b", 0.5, -0.25), Policy("c", "c", [], None, None, 0)])
    quarter, half = Shade(0.25, 0.15, 0.35, 25), Shade(0.5, 0.4, 0.6, 50)
    assert found["exact_match"] == [Heat(["a", "b"], {"sums": {"de": [None, half], "en": [quarter, half]}})]
    liked = Shade(-0.25, -1.0, 1.0, 0)
    assert found["preference"] == [Heat(["a", "b"], {"sums": {"de": [None, liked], "en": [None, liked]}})]
    assert heat_maps([Policy("c", "c", [], None, None, 0)]) == {}


def test_more_policies_than_fit_beside_each_other_go_into_tables_below() -> None:
    found = heat_maps([policy(f"p{n}", n / 20, None) for n in range(16)])
    assert [len(table.labels) for table in found["exact_match"]] == [7, 7, 2]
    assert [label for table in found["exact_match"] for label in table.labels] == [f"p{n}" for n in range(16)]
    assert found["exact_match"][2].rows["sums"]["en"][1] == Shade(0.75, 0.65, 0.85, 75)
    assert "preference" not in found
