"""Figures of selection over items whose samples are written out, and their plots."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.evaluate.measure.selection import SampledItem, calibration_figures, curve_figures, sizes_up_to
from posttrain.evaluate.page.figures import selection_plots
from posttrain.sample.choose.curves import pass_at_k


def item(number: int, correct: list[float], **changed: Any) -> SampledItem:
    n = len(correct)
    fields: dict[str, Any] = {
        "id": f"item/{number}",
        "task": "count",
        "language": "en",
        "prompt_tokens": 10,
        "responses": [f"It is {c:g}." for c in correct],
        "texts": [f"It is {c:g}." for c in correct],
        "answers": ["right" if c else "wrong" for c in correct],
        "tokens": [4] * n,
        "reasoning_tokens": [0] * n,
        "ended": [True] * n,
        "logprobs": [-0.5 + 0.4 * c for c in correct],
        "rewards": [-c for c in correct],
        "correct": correct,
        "preference": [c - 0.25 for c in correct],
    }
    return SampledItem(**(fields | changed))


ITEMS = [item(0, [1, 1, 0, 1]), item(1, [0, 1, 0, 0]), item(2, [1, 1, 1, 1], task="echo", tokens=[8] * 4)]


def values(points: list[dict[str, Any]]) -> list[float]:
    return [point["value"] for point in points]


def test_sizes_are_the_powers_of_two_and_the_whole() -> None:
    assert sizes_up_to(32) == [1, 2, 4, 8, 16, 32]
    assert sizes_up_to(12) == [1, 2, 4, 8, 12]
    assert sizes_up_to(2) == [1, 2]


def test_curves_by_hand() -> None:
    figures = curve_figures(ITEMS, resamples=200, confidence=0.95, seed=0)
    correct = figures["curves"]["correct"]
    one = (3 / 4 + 1 / 4 + 1) / 3
    oracle = [(pass_at_k(4, 3, k) + pass_at_k(4, 1, k) + 1) / 3 for k in (1, 2, 4)]
    assert figures["sizes"] == [1, 2, 4]
    assert values(correct["oracle"]) == values(correct["logprob"]) == pytest.approx(oracle)
    # The reward prefers the wrong one: it is right only where all k are, C(3, k) / C(4, k) for item 0.
    assert values(correct["reward"]) == pytest.approx([one, (1 / 2 + 0 + 1) / 3, 1 / 3])
    # Pairs of item 0: three of two right ones, three ties; of item 1: three ties.
    assert values(correct["majority"]) == pytest.approx([one, (3 / 4 + 1 / 4 + 1) / 3, 2 / 3])
    assert [p["gain"]["value"] for p in correct["oracle"]] == pytest.approx([o - one for o in oracle])
    assert values(figures["curves"]["preference"]["oracle"]) == pytest.approx([o - 0.25 for o in oracle])
    assert [cost["new_tokens"] for cost in figures["cost"]] == pytest.approx([16 / 3, 32 / 3, 64 / 3])
    assert figures["cost"][2]["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    assert figures["correct_by_task"]["echo"]["reward"] == [1, 1, 1]
    assert figures["correct_by_task"]["count"]["oracle"][0] == pytest.approx(0.5)


def test_over_optimisation_counts_in_deviations_among_an_items_samples() -> None:
    found = curve_figures(ITEMS, resamples=200, confidence=0.95, seed=0)["over_optimisation"]
    # Variances of 1, 1, 0, 1 and of 0, 1, 0, 0 are ¼, of 1, 1, 1, 1 none: mean ⅙.
    deviation = math.sqrt((1 / 4 + 1 / 4 + 0) / 3)
    proxy = [0, ((-1 / 2 + 3 / 4) + (0 + 1 / 4)) / 3, ((0 + 3 / 4) + (0 + 1 / 4)) / 3]
    assert values(found["proxy"]) == pytest.approx([gain / deviation for gain in proxy])
    assert values(found["gold"]) == pytest.approx([-gain / deviation for gain in proxy])
    assert values(found["best_gold"])[-1] == pytest.approx((1 / 4 + 3 / 4) / 3 / deviation)


def test_items_without_a_true_preference_have_their_curve_all_the_same() -> None:
    bare = [item(n, [1, 0], preference=None) for n in range(3)]
    figures = curve_figures(bare, resamples=100, confidence=0.95, seed=0)
    assert (list(figures["curves"]), figures["over_optimisation"]) == (["correct"], None)
    mixed = curve_figures([*bare, item(3, [1, 0])], resamples=100, confidence=0.95, seed=0)
    assert (mixed["curves"]["preference"]["oracle"][0]["n"], mixed["curves"]["correct"]["oracle"][0]["n"]) == (1, 4)


def test_calibration_judges_the_majoritys_answer() -> None:
    # 300 items of 3 : 1 votes for a right answer, 100 of 2 : 2 whose first answer is wrong.
    items = [item(n, [1, 1, 0, 1]) for n in range(300)] + [item(n, [0, 1, 1, 0]) for n in range(300, 400)]
    figures = calibration_figures(items, max_risk=0.1, confidence=0.95, seed=0)
    consistency = figures["confidences"]["self-consistency"]
    assert figures["risk"] == 0.25
    assert [(b["predicted"], b["accuracy"], b["n"]) for b in consistency["bins"]] == [(0.5, 0, 100), (0.75, 1, 300)]
    assert consistency["calibration_error"] == pytest.approx((100 * 0.5 + 300 * 0.25) / 400)
    assert (consistency["coverage"], consistency["risk"]) == ([0.75, 1], [0, 0.25])
    abstention = consistency["abstention"]
    assert (abstention["threshold"], abstention["risk"], abstention["n"]) == (0.5, 0, 200)
    assert abstention["tried_on"]["n"] == 200 and abstention["tried_on"]["risk"] == 0
    assert abstention["coverage"] + abstention["tried_on"]["coverage"] == pytest.approx(2 * 0.75)
    few = calibration_figures(items[:8], max_risk=0.1, confidence=0.95, seed=0)
    assert few["confidences"]["certainty"]["abstention"] is None


def test_the_figures_are_svg_with_a_line_for_each_selector() -> None:
    items = [item(n, [float((n + i) % 3 > 0) for i in range(4)]) for n in range(12)]
    curve = curve_figures(items, resamples=100, confidence=0.95, seed=0)
    calibration = calibration_figures(items, max_risk=0.1, confidence=0.95, seed=0)
    drawn = {
        selection_plots.selection_curves(curve, "a"): ["oracle", "reward model", "majority vote", "true preference"],
        selection_plots.over_optimisation(curve, "b"): ["proxy: the reward model", "gold: the true preference"],
        selection_plots.reliability(calibration, "c"): ["likelihood", "self-consistency", "certainty", "share right"],
        selection_plots.risk_coverage(calibration, "d"): ["likelihood (area", "most that is allowed"],
    }
    for svg, wanted in drawn.items():
        text = " ".join(ElementTree.fromstring(svg).itertext())
        assert all(label in text for label in wanted), wanted
        assert len(set(re.findall(r'\bid="([^"]+)"', svg))) == len(re.findall(r'\bid="', svg))
