"""Paired changes: clusters, coverage by simulation, exact tests, and that seeing nothing is not called equal."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluate.measure.paired import (
    Change,
    bca_interval,
    correlation_within,
    detectable,
    expected_error,
    holm,
    paired_change,
    power_at,
    sign_flip,
)


def simulated(rng: np.random.Generator, questions: int, languages: int, lift: float = 0.0) -> Change:
    """Return a change on questions whose translations mostly go together; won and lost are equally likely."""
    won_G = rng.beta((0.15 + lift / 2) * 1.5, (0.85 - lift / 2) * 1.5, questions)
    lost_G = np.minimum(rng.beta((0.15 - lift / 2) * 1.5, (0.85 + lift / 2) * 1.5, questions), 1 - won_G)
    draws = rng.random((questions, languages))
    after = np.where(draws < won_G[:, None], 1.0, np.where(draws > 1 - lost_G[:, None], -1.0, 0.0)).ravel()
    groups = [str(number) for number in range(questions) for _ in range(languages)]
    return paired_change(np.zeros(after.size), after, groups, resamples=1000, seed=int(rng.integers(1 << 30)))


def coverage(runs: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    found = [simulated(rng, 100, 12) for _ in range(runs)]
    hits = sum(change.low <= 0 <= change.high for change in found)
    return hits / runs, sum(change.p_value < 0.05 for change in found) / runs


def test_intervals_of_translated_questions_cover_as_often_as_they_say() -> None:
    covered, called = coverage(runs=120, seed=1)
    assert 0.9 <= covered <= 0.99
    assert called <= 0.1


@pytest.mark.slow
def test_intervals_of_translated_questions_cover_between_93_and_97_percent() -> None:
    covered, called = coverage(runs=4000, seed=7)
    assert 0.93 <= covered <= 0.97
    assert 0.035 <= called <= 0.065


def test_translations_that_go_together_count_once() -> None:
    rng = np.random.default_rng(3)
    once = rng.integers(-1, 2, 100).astype(float)
    alone = paired_change(np.zeros(100), once)
    copied = paired_change(np.zeros(1200), np.repeat(once, 12), np.repeat(np.arange(100), 12).tolist())
    assert (copied.value, copied.low, copied.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert (copied.error, copied.p_value) == pytest.approx((alone.error, alone.p_value))
    assert (copied.n, copied.clusters) == (1200, 100)


def test_the_bootstrap_is_scipys_bca() -> None:
    rng = np.random.default_rng(4)
    sums, sizes = rng.exponential(1.0, 80) - 0.4, rng.integers(1, 6, 80).astype(float)

    def ratio(s: np.ndarray, m: np.ndarray, axis: int = -1) -> np.ndarray:
        return s.sum(axis=axis) / m.sum(axis=axis)

    expected = stats.bootstrap(
        (sums, sizes), ratio, paired=True, method="BCa", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert bca_interval(sums, sizes, resamples=20_000) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_nothing_seen_is_not_called_equal() -> None:
    same = paired_change(np.ones(100), np.ones(100))
    # Of a share of 3.6 %, a hundred items show none once in 40 times: (1 − 0.0362)^100 = 0.025.
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert (same.low, same.high) == pytest.approx((-0.0362, 0.0362), abs=1e-4)
    assert paired_change(np.ones(10), np.ones(10)).high > same.high


def test_few_items_have_a_wide_interval_even_where_all_changed_alike() -> None:
    found = paired_change([0] * 4, [1] * 4)
    assert found.value == found.high == 1.0 and found.low < 0.5
    assert found.p_value == 2 / 16  # of sixteen patterns of signs, two are as far from zero


def test_signs_of_single_items_are_mcnemars_exact_test() -> None:
    assert sign_flip([-1] * 5)[0] == pytest.approx(stats.binomtest(0, 5).pvalue)
    assert sign_flip([1, 1, 1, 1, 1, 1, -1])[0] == pytest.approx(stats.binomtest(6, 7).pvalue)
    assert sign_flip([-1] * 9 + [1])[1] == pytest.approx(stats.binomtest(1, 10, alternative="less").pvalue)
    many = [-1.0] * 60 + [1.0] * 30
    assert sign_flip(many)[0] == pytest.approx(stats.binomtest(30, 90).pvalue, rel=0.35)
    assert sign_flip(many * 6)[0] == pytest.approx(stats.binomtest(180, 540).pvalue, rel=0.6)
    assert sign_flip([])[0] == 1.0


def test_sums_of_clusters_weigh_in_the_sign_test() -> None:
    sums = [3.0, -1.0, 2.0, 0.5]
    totals = [sum(s * v for s, v in zip(signs, sums, strict=True)) for signs in product((1, -1), repeat=4)]
    assert sign_flip(sums)[0] == sum(abs(total) >= 4.5 for total in totals) / 16


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_could_be_seen() -> None:
    # Two-sided at 95 %, power 0.8: (1.96 + 0.8416) standard errors.
    assert detectable(0.01) == pytest.approx(0.028016, abs=1e-5)
    assert power_at(detectable(0.01), 0.01) == pytest.approx(0.8, abs=1e-6)
    # n ≈ 6.18 · d / δ² of a one-sided test at 5 %: 20 % discordant and 3 points want 1,375 items.
    assert power_at(0.03, expected_error(np.ones(1375), 0.2, 0.0), two_sided=False) == pytest.approx(0.8, abs=0.002)
    assert expected_error(np.full(100, 12), 0.2, 1.0) == pytest.approx(expected_error(np.ones(100), 0.2, 0.0))


def test_correlation_within_clusters() -> None:
    assert correlation_within([1, 1, 0, 0], ["a", "a", "b", "b"]) == 1.0
    assert correlation_within([1, 0, 1, 0], ["a", "b", "c", "d"]) == 0.0
    rng = np.random.default_rng(6)
    shared, own = rng.normal(size=2000).repeat(5), rng.normal(size=10_000)
    assert correlation_within(shared + own, np.repeat(np.arange(2000), 5).tolist()) == pytest.approx(0.5, abs=0.03)


def test_scores_must_be_of_the_same_items() -> None:
    with pytest.raises(ValueError, match="3 scores before and 2 after"):
        paired_change([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="give both"):
        paired_change([1, 2], [1, 2], ["a"])
