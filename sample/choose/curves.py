"""What N samples buy: unbiased estimates for every k ≤ N from the same N samples of a prompt.

Each function takes one prompt's samples and returns the expected value of what is picked among k of them, drawn without
replacement: the mean over all C(N, k) subsets, without listing them. A value is any score of a sample, such as 1 for
right and 0 for wrong.

Letters of array shapes: N samples of a prompt, J + 1 numbers of answers that tie, E votes of those that
do not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the chance that at least one of k samples is right, ``1 − C(n − right, k) / C(n, k)`` (Chen et al. 2021).

    Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ right ≤ n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"k={k} with {right} right of n={n}; give 1 <= k <= n and 0 <= right <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def best_of_k(proxy: ArrayLike, values: ArrayLike, k: int) -> float:
    """Return the expected value of the sample with the highest proxy score among k; ties are broken at random.

    In ascending order of the proxy, the i-th sample (from 1) is the best of C(i − 1, k − 1) subsets. With the values as
    their own proxy this is the oracle, which for values 0 and 1 is `pass_at_k`.
    """
    proxy_N, values_N = np.asarray(proxy, dtype=np.float64), np.asarray(values, dtype=np.float64)
    n = proxy_N.size
    if values_N.size != n or not 1 <= k <= n:
        raise ValueError(f"k={k} with {n} proxy scores and {values_N.size} values; give as many of both, 1 <= k <= n")
    places_N = np.unique(proxy_N, return_inverse=True)[1]
    mean_by_place = np.bincount(places_N, weights=values_N) / np.bincount(places_N)
    weights_N = np.array([math.comb(i, k - 1) for i in range(n)], dtype=np.float64) / math.comb(n, k)
    return float(weights_N @ mean_by_place[np.sort(places_N)])


def majority_at_k(answers: Sequence[str | None], values: ArrayLike, k: int) -> float:
    """Return the expected value of the most frequent answer among k samples; ties are broken at random.

    A sample without an answer (None) does not vote; where no sample of the k votes, any of them is taken. Samples with
    the same answer may differ in value, in which case the answer is worth their mean.
    """
    values_of: dict[str | None, list[float]] = defaultdict(list)
    for answer, value in zip(answers, np.asarray(values, dtype=np.float64).tolist(), strict=True):
        values_of[answer].append(value)
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of {n} samples; give 1 <= k <= samples")
    silent = values_of.pop(None, [])
    groups = sorted(((len(own), float(np.mean(own))) for own in values_of.values()), reverse=True)
    total = 0.0
    if silent:
        total = float(np.mean(silent)) * binom.pmf(k, len(silent), k / n) * binom.pmf(0, n - len(silent), k / n)
    for votes in range(1, min(k, groups[0][0] if groups else 0) + 1):
        able = [group for group in groups if group[0] >= votes]
        total += _won_with(votes, able, n - sum(count for count, _ in able), k, k / n)
    worths = [float(np.mean(own)) for own in (silent, *values_of.values()) if own]
    return float(min(max(total / binom.pmf(k, n, k / n), min(worths)), max(worths)))  # a mean, but for its rounding


def _won_with(votes: int, able: Sequence[tuple[int, float]], rest: int, k: int, chance: float) -> float:
    """Return the chance that k samples are drawn and the winners have so many votes, times what the winner is worth.

    Each sample is drawn with a chance by itself, which given how many were drawn makes all subsets alike, and keeps
    the numbers near 1 however many subsets there are. ``able`` are count and worth of the answers with so many samples,
    ``rest`` counts all other samples. Row j holds chances when j answers tie, by the votes of those that do not.
    """
    most = k // votes
    drawn_JE, worth_JE = np.ones((1, 1)), np.zeros((1, 1))
    for count, worth in able:
        *below, full = binom.pmf(np.arange(votes + 1), count, chance)
        won_JE = full * (worth_JE + worth * drawn_JE)
        worth_JE = _joined(_spread(worth_JE, below, k), won_JE, most)
        drawn_JE = _joined(_spread(drawn_JE, below, k), full * drawn_JE, most)
    rows_J1, votes_E = np.arange(1, len(worth_JE))[:, None], np.arange(worth_JE.shape[1])
    others_JE = binom.pmf(k - votes * rows_J1 - votes_E, rest, chance)
    return float((worth_JE[1:] * others_JE / rows_J1).sum())


def _spread(ways_JE: NDArray[np.float64], below: Sequence[float], most: int) -> NDArray[np.float64]:
    """Return chances after an answer that gets fewer votes than the winners: convolved with those of its votes."""
    rows, old = ways_JE.shape
    width = min(old + len(below) - 1, most + 1)
    if rows < len(below):
        return np.stack([np.convolve(row, below)[:width] for row in ways_JE])
    spread_JE = np.zeros((rows, width))
    for votes, chance in enumerate(below[:width]):
        spread_JE[:, votes : votes + old] += chance * ways_JE[:, : width - votes]
    return spread_JE


def _joined(spread_JE: NDArray[np.float64], won_JE: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return chances after an answer that gets fewer votes than the winners, or is one of at most ``most`` of them."""
    rows, width = spread_JE.shape
    joined_JE = np.zeros((min(rows, most) + 1, width))
    joined_JE[:rows] = spread_JE
    joined_JE[1:, : won_JE.shape[1]] += won_JE[: len(joined_JE) - 1]
    return joined_JE


def best_of_n_kl(n: int) -> float:
    """Return ``log n − (n − 1) / n``, the most that best-of-n moves a policy in KL divergence, in nats.

    It is exact when no two samples are alike, and an upper bound otherwise (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n
