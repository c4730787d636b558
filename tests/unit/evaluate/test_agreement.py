"""Kappa against worked examples, and win rates at equal length against another fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from posttrain.evaluate.measure.agreement import kappa, kappa_interval
from posttrain.evaluate.measure.judgements import Judgement, length_controlled


def test_kappa_is_agreement_beyond_chance() -> None:
    # 35 of 50 agree; chance is 0.5 · 0.6 + 0.5 · 0.4.
    assert kappa([[20, 5], [10, 15]]) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa([[0, 5], [5, 0]]) == pytest.approx(-1)
    assert kappa([[7, 0], [0, 0]]) == 1


def test_the_interval_is_as_wide_as_the_sampling_error_and_clusters_widen_it() -> None:
    one, other = [0] * 20 + [0] * 5 + [1] * 10 + [1] * 15, [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
    found = kappa_interval(one * 4, other * 4)
    repeated = kappa_interval(one * 4, other * 4, clusters=list(range(50)) * 4)

    generator = np.random.default_rng(1)
    draws = [kappa(generator.multinomial(200, [0.4, 0.1, 0.2, 0.3]).reshape(2, 2)) for _ in range(4000)]
    assert found.value == pytest.approx(0.4)
    assert found.high - found.low == pytest.approx(np.quantile(draws, 0.975) - np.quantile(draws, 0.025), rel=0.1)
    assert repeated.high - repeated.low == pytest.approx(2 * (found.high - found.low), rel=0.15)


def test_labels_of_different_things_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels and 1"):
        kappa_interval([1, 2], [1])


def judgement(n: int, wins: bool, gap: int) -> Judgement:
    places = ("second", "first") if wins else ("first", "second")
    return Judgement(str(n), "t", "en", str(n), places, (100, 100 + gap))


def test_a_judge_of_length_alone_sees_no_winner_at_equal_length() -> None:
    generator = np.random.default_rng(0)
    gaps = generator.normal(30, 40, 600).astype(int)
    chance = 1 / (1 + np.exp(-3 * np.tanh(gaps / gaps.std())))
    wins = generator.random(600) < chance
    found = length_controlled(
        [judgement(n, bool(win), int(gap)) for n, (win, gap) in enumerate(zip(wins, gaps, strict=True))]
    )

    def loss(weights: np.ndarray) -> float:
        logits = weights[0] + weights[1] * np.tanh(gaps / gaps.std())
        return float(np.logaddexp(0, np.where(wins, -logits, logits)).sum() + 0.05 * (weights**2).sum())

    level = optimize.minimize(loss, np.zeros(2)).x[0]
    assert wins.mean() > 0.65
    assert found.low < 0.5 < found.high
    assert found.value == pytest.approx(1 / (1 + np.exp(-level)), abs=1e-4)


def test_a_winner_of_every_pair_has_a_finite_fit() -> None:
    found = length_controlled([judgement(n, True, n % 3) for n in range(30)])
    assert 0.9 < found.low <= found.value < 1
