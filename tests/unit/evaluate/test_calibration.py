"""Calibration and abstention: figures by hand, on data of known error, and the guarantee by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluate.measure.calibration import (
    abstention_threshold,
    expected_calibration_error,
    reliability_bins,
    risk_coverage,
)


def test_bins_by_hand() -> None:
    low, high = reliability_bins([0.9, 0.2, 0.8, 0.4], [1, 0, 0, 1], bins=2)
    assert (low.predicted, low.accuracy, low.n) == (pytest.approx(0.3), 0.5, 2)
    assert (high.predicted, high.accuracy, high.n) == (pytest.approx(0.85), 0.5, 2)
    assert expected_calibration_error([low, high]) == pytest.approx((0.2 + 0.35) / 2)


def test_equal_confidences_share_a_bin() -> None:
    found = reliability_bins([0.5] * 7 + [1.0] * 3, [1, 0, 1, 0, 1, 0, 1, 1, 1, 1], bins=5)
    assert [(b.predicted, b.n) for b in found] == [(0.5, 7), (1.0, 3)]
    assert [b.n for b in reliability_bins([0.3], [1])] == [1]


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
def test_the_error_is_the_shift_between_confidence_and_accuracy(shift: float) -> None:
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0, 1 - shift, 60_000)
    correct = rng.random(60_000) < accuracy
    error = expected_calibration_error(reliability_bins(accuracy + shift, correct))
    # Where calibration is perfect, the error is that of ten means of 6000 outcomes: 0.8 · √(p(1 − p)/6000) each.
    assert error == pytest.approx(shift, abs=0.008)


def test_risk_and_coverage_by_hand() -> None:
    # In descending order of confidence: right, wrong and right (a tie), wrong.
    curve = risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    assert curve.thresholds == [0.9, 0.5, 0.1]
    assert curve.coverage == [0.25, 0.75, 1.0]
    assert curve.risk == [0.0, pytest.approx(1 / 3), 0.5]
    # The tie in both orders: risks (0, ½, ⅓, ½) and (0, 0, ⅓, ½).
    assert curve.area == pytest.approx((0 + (0.5 + 0) / 2 + 1 / 3 + 0.5) / 4)
    assert curve.least_area == pytest.approx((0 + 0 + 1 / 3 + 0.5) / 4)


def test_the_area_is_the_mean_over_all_orders_of_the_ties() -> None:
    confidence, correct = [0.8, 0.8, 0.8, 0.3, 0.3], [1, 0, 0, 1, 0]
    areas = []
    for first in itertools.permutations(correct[:3]):
        for second in itertools.permutations(correct[3:]):
            wrong = np.cumsum([1 - c for c in (*first, *second)])
            areas.append(np.mean(wrong / np.arange(1, 6)))
    assert risk_coverage(confidence, correct).area == pytest.approx(np.mean(areas))


def test_a_confidence_that_says_nothing_has_the_base_risk_everywhere() -> None:
    curve = risk_coverage([0.5] * 8, [1, 1, 1, 0, 1, 0, 1, 1])
    assert (curve.coverage, curve.risk, curve.area) == ([1.0], [0.25], pytest.approx(0.25))


def test_a_perfect_confidence_has_the_least_area() -> None:
    correct = np.arange(50) >= 15
    curve = risk_coverage(np.linspace(0, 1, 50), correct)
    assert curve.area == pytest.approx(curve.least_area)
    assert risk_coverage(np.linspace(1, 0, 50), correct).area > 3 * curve.least_area


def test_the_bound_is_clopper_and_pearsons() -> None:
    correct = [1] * 97 + [0] * 3
    found = abstention_threshold(np.linspace(1, 0, 100), correct, max_risk=0.2, error=0.1, levels=1)
    assert found is not None
    reference = stats.binomtest(3, 100).proportion_ci(0.8, method="exact").high  # two-sided 0.8 is one-sided 0.9
    assert (found.threshold, found.coverage, found.risk) == (-math.inf, 1.0, pytest.approx(0.03))
    assert found.risk_bound == pytest.approx(reference)
    assert found.as_dict()["threshold"] is None


def test_the_threshold_cuts_off_the_wrong_ones() -> None:
    confidence = np.linspace(1, 0, 400)
    found = abstention_threshold(confidence, np.arange(400) < 200, max_risk=0.1)
    assert found is not None
    assert found.coverage == pytest.approx(0.5)
    assert found.threshold == confidence[200]
    assert found.risk == 0
    # No wrong one of 200: 1 − (0.05 / 20)^(1/200).
    assert found.risk_bound == pytest.approx(1 - (0.05 / 20) ** (1 / 200))


def test_there_is_no_threshold_where_nothing_is_sure_enough() -> None:
    assert abstention_threshold(np.linspace(1, 0, 400), np.arange(400) % 2, max_risk=0.1) is None
    assert abstention_threshold([0.9] * 20, [1] * 20, max_risk=0.1) is None


def test_ties_are_answered_together_or_not_at_all() -> None:
    confidence = [1.0] * 300 + [0.5] * 100
    found = abstention_threshold(confidence, [1] * 300 + [0] * 100, max_risk=0.05)
    assert found is not None
    assert (found.threshold, found.coverage, found.risk) == (0.5, 0.75, 0.0)


@pytest.mark.parametrize("steps", [None, 12])
def test_the_guarantee_holds_as_often_as_it_says(steps: int | None) -> None:
    """Risk at confidence c is 1 − c; with ``steps`` the confidences have ties."""
    rng, max_risk, error, broken, made = np.random.default_rng(0), 0.25, 0.1, 0, 0
    for _ in range(1500):
        confidence = rng.random(300) if steps is None else rng.integers(0, steps, 300) / (steps - 1)
        correct = rng.random(300) < confidence
        found = abstention_threshold(confidence, correct, max_risk, error, levels=10)
        if found is None:
            continue
        made += 1
        if steps is None:
            true_risk = 1 - (1 + max(found.threshold, 0)) / 2
        else:
            true_risk = 1 - np.mean([s / (steps - 1) for s in range(steps) if s / (steps - 1) > found.threshold])
        broken += true_risk > max_risk
    assert made > 1000
    assert broken / 1500 <= error


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="2 confidences and 3 outcomes"):
        risk_coverage([0.1, 0.2], [1, 0, 1])
    with pytest.raises(ValueError, match="right \\(1\\) or wrong \\(0\\)"):
        abstention_threshold([0.1, 0.2], [0.5, 1], 0.1)
