"""Intervals and tests against arithmetic written out, references in scipy, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluate.measure.statistics import (
    calibration,
    calibration_error,
    clustered_mean,
    clustered_proportion,
    correlation,
    lost_and_won,
    mean_interval,
    pair_accuracy,
    paired_bootstrap,
    proportion,
    wilson_interval,
    within_group_correlation,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (81, 100), (1, 2)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_is_scipys(successes: int, n: int, confidence: float) -> None:
    reference = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + z²/20) / (1 + z²/10), half-width z / (1 + z²/10) · √(0.016 + z²/400).
    z = 1.959964
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    assert wilson_interval(8, 10) == pytest.approx((centre - half, centre + half), abs=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="give 0 <= successes <= n"):
        wilson_interval(successes, n)


def test_mean_interval_is_students() -> None:
    values = [0.2, 0.5, 0.9, 0.4]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean_interval(values, 0.9)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.5, low, high, 4))
    assert mean_interval([0.3]) == mean_interval([0.3], 0.5)


def test_clusters_of_one_give_the_plain_interval() -> None:
    values = np.arange(200) % 4 == 0
    assert clustered_proportion(values, np.arange(200)) == proportion(values)
    assert clustered_mean(values, np.arange(200)) == mean_interval(values)


def test_values_of_copied_groups_count_once() -> None:
    values = [0.2, 0.5, 0.9, 0.4]
    alone, copied = mean_interval(values), clustered_mean(np.repeat(values, 5), np.repeat(np.arange(4), 5))
    assert (copied.value, copied.low, copied.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_groups_whose_scores_are_copies_count_once() -> None:
    one_each = [1, 0, 1, 1, 0, 1, 1, 1]
    copied = np.repeat(one_each, 6)
    groups = np.repeat(np.arange(8), 6)
    found = clustered_proportion(copied, groups)
    # Σ_g (Σ (x − x̄))² = 36 · Σ (x − ¾)² = 36 · 1.5; variance 8/7 · 54 / 48²; effective size 0.1875 / that = 7.
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.75 * 7, 7))
    assert found.n == 48


def test_equal_scores_count_each_group_once() -> None:
    found = clustered_proportion(np.ones(12), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    assert (found.value, found.low, found.high) == (1.0, *wilson_interval(4, 4))


def test_clustered_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 6)
    hits = plain_hits = 0
    for _ in range(600):
        # Each group has its own accuracy around 0.8, so pairs of a group go together.
        scores = rng.random(360) < rng.beta(3.2, 0.8, size=60)[groups]
        clustered, plain = clustered_proportion(scores, groups), proportion(scores)
        hits += clustered.low <= 0.8 <= clustered.high
        plain_hits += plain.low <= 0.8 <= plain.high
    assert 0.92 <= hits / 600 <= 0.98
    assert plain_hits / 600 < 0.85


def test_paired_bootstrap_is_scipys_percentile_interval() -> None:
    rng = np.random.default_rng(1)
    before = rng.integers(0, 2, 300).astype(float)
    after = np.clip(before + (rng.random(300) < 0.2) - (rng.random(300) < 0.1), 0, 1)
    found = paired_bootstrap(before, after, 0.95, resamples=20_000, seed=2)
    reference = stats.bootstrap(
        (after - before,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert found.value == pytest.approx(float((after - before).mean()))
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.004)
    assert found == paired_bootstrap(before, after, 0.95, resamples=20_000, seed=2)


def test_paired_bootstrap_is_as_wide_as_the_items_changed() -> None:
    scores = np.arange(100) % 2
    swapped = paired_bootstrap(scores, 1 - scores)
    # Every item changed by one, half of them for the better: the mean of 100 such has a standard error of 0.1.
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((0, -0.196, 0.196), abs=0.03)
    same = paired_bootstrap(scores, scores)
    assert (same.low, same.high) == (0, 0)


def test_paired_bootstrap_of_one_difference_has_no_width() -> None:
    found = paired_bootstrap([0.25] * 8, [0.75] * 8)
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 8)


def test_paired_bootstrap_wants_the_same_items() -> None:
    with pytest.raises(ValueError, match="3 scores before and 2 after"):
        paired_bootstrap([1, 2, 3], [1, 2])


def test_lost_and_won_count_what_changed() -> None:
    before = [1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    after = [1, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert lost_and_won(before, after) == (1, 6)
    assert lost_and_won(before, before) == (0, 0)


def test_correlations() -> None:
    x, y = [1.0, 2.0, 4.0, 3.0, 6.0], [2.0, 1.0, 5.0, 5.0, 7.0]
    assert correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1], [1]) is None
    # Rising within each group, though the groups' means fall: together almost nothing, within a group exactly 1.
    x, y, groups = [1, 2, 3, 4], [10, 11, 1, 2], ["a", "a", "b", "b"]
    assert within_group_correlation(x, y, groups) == pytest.approx(1.0)
    assert (correlation(x, y) or 0) < 0


def test_pair_accuracy_halves_ties() -> None:
    assert pair_accuracy([0.3, -2.0, 0.0]).tolist() == [1.0, 0.0, 0.5]


def test_calibration_bins_hold_equally_many_pairs_by_size_of_margin() -> None:
    margins = [0.1, -0.2, 3.0, 2.5]
    small, large = calibration(margins, bins=2)
    assert (small.margin_low, small.margin_high, small.accuracy, small.n) == (0.1, 0.2, 0.5, 2)
    assert (large.margin_low, large.margin_high, large.accuracy) == (2.5, 3.0, 1.0)
    sigmoid = [1 / (1 + math.exp(-m)) for m in (0.1, 0.2, 2.5, 3.0)]
    assert small.predicted == pytest.approx((sigmoid[0] + sigmoid[1]) / 2)
    gaps = [abs(0.5 - (sigmoid[0] + sigmoid[1]) / 2), abs(1 - (sigmoid[2] + sigmoid[3]) / 2)]
    assert calibration_error([small, large]) == pytest.approx(sum(gaps) / 2)


def test_outcomes_drawn_from_the_margins_are_calibrated() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.exponential(1.5, 40_000)
    margins = np.where(rng.random(40_000) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)
    assert calibration_error(calibration(margins)) < 0.01


def test_more_bins_than_pairs() -> None:
    assert [part.n for part in calibration([0.5, -1.0, 2.0])] == [1, 1, 1]


@pytest.mark.parametrize("n", range(1, 400))
def test_an_interval_contains_its_estimate_whatever_the_rounding(n: int) -> None:
    for value in (0.0, 1.0):
        interval = proportion([value] * n)
        assert interval.low <= interval.value <= interval.high
