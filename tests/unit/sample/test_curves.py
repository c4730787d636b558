"""Unbiased estimates for k of N samples, against the mean over all subsets written out."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from posttrain.sample.choose.curves import best_of_k, best_of_n_kl, majority_at_k, pass_at_k


def mean_over_subsets(n: int, k: int, value: Callable[[Sequence[int]], float]) -> float:
    return float(np.mean([value(subset) for subset in itertools.combinations(range(n), k)]))


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(right: int, k: int) -> None:
    assert pass_at_k(6, right, k) == pytest.approx(mean_over_subsets(6, k, lambda subset: min(subset) < right))


def test_pass_at_k_by_hand() -> None:
    # 2 of 5 right: of the 10 pairs, 3 hold none of them.
    assert pass_at_k(5, 2, 2) == pytest.approx(7 / 10)
    with pytest.raises(ValueError, match="k=6 with 2 right of n=5"):
        pass_at_k(5, 2, 6)


def test_pass_at_k_is_unbiased_where_1_minus_failures_to_the_k_is_not() -> None:
    rng, chance, n, k = np.random.default_rng(0), 0.1, 6, 4
    right = rng.binomial(n, chance, 20_000)
    truth = 1 - (1 - chance) ** k
    assert np.mean([pass_at_k(n, c, k) for c in right]) == pytest.approx(truth, abs=0.01)
    assert np.mean(1 - (1 - right / n) ** k) < truth - 0.03


def best_by_proxy(proxy: Sequence[float], values: Sequence[float]) -> Callable[[Sequence[int]], float]:
    def value(subset: Sequence[int]) -> float:
        top = max(proxy[i] for i in subset)
        return float(np.mean([values[i] for i in subset if proxy[i] == top]))

    return value


def test_best_of_k_is_the_mean_over_subsets_ties_included() -> None:
    rng = random.Random(0)
    for _ in range(40):
        n = rng.randint(1, 8)
        proxy, values = [rng.randint(0, 4) for _ in range(n)], [rng.random() for _ in range(n)]
        for k in range(1, n + 1):
            expected = mean_over_subsets(n, k, best_by_proxy(proxy, values))
            assert best_of_k(proxy, values, k) == pytest.approx(expected)


def test_best_of_k_by_hand() -> None:
    # Proxy ranks: 0.1 < 0.5 < 0.9, values 1, 0, 5. Pairs: {1, 2} → 0, {1, 3} → 5, {2, 3} → 5.
    assert best_of_k([0.5, 0.1, 0.9], [0, 1, 5], 2) == pytest.approx(10 / 3)
    assert best_of_k([0.5, 0.1, 0.9], [0, 1, 5], 1) == pytest.approx(2)
    assert best_of_k([0.5, 0.1, 0.9], [0, 1, 5], 3) == 5
    with pytest.raises(ValueError, match="k=4 with 3 proxy scores and 3 values"):
        best_of_k([0.5, 0.1, 0.9], [0, 1, 5], 4)


def test_the_oracle_of_right_and_wrong_is_pass_at_k() -> None:
    values = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        assert best_of_k(values, values, k) == pytest.approx(pass_at_k(7, 2, k))


def majority(answers: Sequence[str | None], values: Sequence[float]) -> Callable[[Sequence[int]], float]:
    worth = {
        answer: float(np.mean([v for a, v in zip(answers, values, strict=True) if a == answer]))
        for answer in set(answers)
    }

    def value(subset: Sequence[int]) -> float:
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        if not votes:
            return float(np.mean([values[i] for i in subset]))
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        return float(np.mean([worth[answer] for answer in winners]))

    return value


def test_majority_at_k_is_the_mean_over_subsets() -> None:
    rng = random.Random(1)
    for _ in range(60):
        n = rng.randint(1, 9)
        answers = [rng.choice(["a", "b", "c", "d", None]) for _ in range(n)]
        values = [rng.random() for _ in range(n)]
        for k in range(1, n + 1):
            expected = mean_over_subsets(n, k, majority(answers, values))
            assert majority_at_k(answers, values, k) == pytest.approx(expected), (answers, k)


def test_majority_at_k_by_hand() -> None:
    # "a" right twice, "b" wrong once. Pairs: {a, a} → 1, {a, b} twice → a tie, ½.
    assert majority_at_k(["a", "a", "b"], [1, 1, 0], 2) == pytest.approx((1 + 2 * 0.5) / 3)
    assert majority_at_k(["a", "a", "b"], [1, 1, 0], 3) == pytest.approx(1)
    # One that abstains from the vote does not outvote one that takes part, however many there are.
    assert majority_at_k([None, None, None, "b"], [0, 0, 0, 1], 4) == pytest.approx(1)


def test_majority_at_32_of_32_is_the_plain_vote() -> None:
    answers = ["x"] * 10 + ["y"] * 9 + [f"other {i}" for i in range(13)]
    values = [0.0] * 10 + [1.0] * 22
    assert majority_at_k(answers, values, 32) == pytest.approx(0)
    assert majority_at_k(answers, values, 1) == pytest.approx(22 / 32)


@pytest.mark.parametrize("sizes", [[23] * 22 + [6], [*range(1, 32), 16], [400, *[7] * 16], [1] * 512, [700] * 3])
def test_the_vote_of_many_samples_is_a_mean_of_their_values(sizes: list[int]) -> None:
    answers = [str(answer) for answer, size in enumerate(sizes) for _ in range(size)]
    for k in (1, 16, 256, len(answers)):
        assert majority_at_k(answers, [1.0] * len(answers), k) == 1.0
        even = [float(int(answer) % 2 == 0) for answer in answers]
        odd = [1.0 - value for value in even]
        assert majority_at_k(answers, even, k) + majority_at_k(answers, odd, k) == pytest.approx(1.0, abs=1e-12)


def test_the_kl_of_best_of_n_is_that_of_the_density_n_times_u_to_the_n_minus_1() -> None:
    # A continuous score's quantile u has density n·u^(n−1) after best-of-n and 1 before: KL = ∫ p log p.
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (1, 2, 8, 32):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 3 / 4)
