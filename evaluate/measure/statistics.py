"""Intervals and tests for evaluation figures: pure functions of arrays.

Letters of array shapes: N observations, G groups, R bootstrap resamples, K distinct values or columns.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_RESAMPLE_CELLS = 1 << 24
"""Most cells of one block of bootstrap counts (128 MiB)."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        # Rounding can put a bound on the wrong side of the estimate, as Wilson's does for 90 of 90.
        object.__setattr__(self, "low", min(self.low, self.value))
        object.__setattr__(self, "high", max(self.high, self.value))

    def as_dict(self) -> dict[str, Any]:
        """Return the interval as plain values."""
        return dataclasses.asdict(self)


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    ``successes`` and ``n`` may be fractional: with scores between 0 and 1 the interval is too wide rather than too
    narrow, since no such score varies more than a 0/1 score of the same mean. Raises ValueError when ``n`` is not
    positive or ``successes`` lies outside 0…n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; give 0 <= successes <= n and n > 0")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of independent scores between 0 and 1 with Wilson's interval."""
    values_N = np.asarray(values, dtype=np.float64)
    low, high = wilson_interval(float(values_N.sum()), values_N.size, confidence)
    return Interval(float(values_N.mean()), low, high, values_N.size)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with Student's t interval; one value alone has no width."""
    values_N = np.asarray(values, dtype=np.float64)
    mean = float(values_N.mean())
    if values_N.size < 2:
        return Interval(mean, mean, mean, values_N.size)
    error = float(values_N.std(ddof=1)) / math.sqrt(values_N.size)
    half = float(stats.t.ppf(0.5 + confidence / 2, values_N.size - 1)) * error
    return Interval(mean, mean - half, mean + half, values_N.size)


def clustered_proportion(values: ArrayLike, groups: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of scores between 0 and 1 with an interval that allows for scores of a group going together.

    The variance of the mean is the cluster-robust one, ``G / (G − 1) · Σ_g (Σ_{i in g} (x_i − x̄))² / N²``. It becomes
    an effective sample size ``x̄ (1 − x̄) / variance``, at most N, with which Wilson's interval is taken; so the bounds
    stay between 0 and 1. Where the scores are all equal and say nothing of their variance, each group counts once.
    Groups of one are independent scores.
    """
    values_N = np.asarray(values, dtype=np.float64)
    groups_N = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(groups_N.max()) + 1
    if count == values_N.size:
        return proportion(values_N, confidence)
    mean = float(values_N.mean())
    sums_G = np.bincount(groups_N, weights=values_N - mean, minlength=count)
    spread = mean * (1 - mean)
    effective = float(count)
    if count > 1 and spread > 0:
        variance = count / (count - 1) * float((sums_G**2).sum()) / values_N.size**2
        effective = min(float(values_N.size), spread / variance) if variance > 0 else float(values_N.size)
    low, high = wilson_interval(mean * effective, effective, confidence)
    return Interval(mean, low, high, values_N.size)


def clustered_mean(values: ArrayLike, groups: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of values with Student's t interval at the cluster-robust error; one group has no width."""
    values_N = np.asarray(values, dtype=np.float64)
    groups_N = np.unique(np.asarray(groups), return_inverse=True)[1]
    count, mean = int(groups_N.max()) + 1, float(values_N.mean())
    if count < 2:
        return Interval(mean, mean, mean, values_N.size)
    sums_G = np.bincount(groups_N, weights=values_N - mean, minlength=count)
    error = math.sqrt(count / (count - 1) * float((sums_G**2).sum())) / values_N.size
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, values_N.size)


def paired_bootstrap(
    before: ArrayLike, after: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of ``after − before`` over the same items with its percentile bootstrap interval.

    A resample of N items is a multinomial draw of how often each distinct difference occurs, which costs K numbers
    instead of N. Raises ValueError when the two differ in length or are empty.
    """
    before_N, after_N = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before_N.shape != after_N.shape or not before_N.size:
        raise ValueError(f"{before_N.size} scores before and {after_N.size} after; give both for the same items")
    differences_K, counts_K = np.unique(after_N - before_N, return_counts=True)
    means_R = _multinomial_means(differences_K, counts_K, resamples, np.random.default_rng(seed))
    return percentile_interval(float((after_N - before_N).mean()), means_R, before_N.size, confidence)


def bootstrap_sums(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Return the column sums ``RK`` over bootstrap resamples of the rows of ``values`` ``GK``, a row for each group.

    What is drawn depends on the number of groups and the seed alone: two calls with the same groups and seed drew the
    same ones, so that the difference between their results is a paired one.
    """
    values_GK = np.asarray(values, dtype=np.float64)
    groups = len(values_GK)
    rng = np.random.default_rng(seed)
    block = max(1, _RESAMPLE_CELLS // groups)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([rng.multinomial(groups, np.full(groups, 1 / groups), size) @ values_GK for size in sizes])


def percentile_interval(value: float, draws: ArrayLike, n: int, confidence: float = 0.95) -> Interval:
    """Return an estimate with the percentile interval of its values over resamples of ``n`` observations."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def _multinomial_means(
    values_K: NDArray[np.float64], counts_K: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    n = int(counts_K.sum())
    block = max(1, _RESAMPLE_CELLS // values_K.size)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([rng.multinomial(n, counts_K / n, size=size) @ values_K / n for size in sizes])


def lost_and_won(before: ArrayLike, after: ArrayLike) -> tuple[int, int]:
    """Return how many items were right before alone, and how many afterwards alone; the inputs are booleans."""
    before_N, after_N = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    lost, won = int((before_N & ~after_N).sum()), int((~before_N & after_N).sum())
    return lost, won


def correlation(x: ArrayLike, y: ArrayLike) -> float | None:
    """Return Pearson's correlation, or None where it is not defined: under two values, or one side constant."""
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x_N.size < 2:
        return None
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = math.sqrt(float((x_N**2).sum()) * float((y_N**2).sum()))
    return float(x_N @ y_N) / scale if scale > 0 else None


def within_group_correlation(x: ArrayLike, y: ArrayLike, groups: ArrayLike) -> float | None:
    """Return Pearson's correlation of what is left of ``x`` and ``y`` after their group's mean is taken away."""
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    groups_N = np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes_G = np.bincount(groups_N)
    x_N, y_N = (v - (np.bincount(groups_N, weights=v) / sizes_G)[groups_N] for v in (x_N, y_N))
    return correlation(x_N, y_N)


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Pairs of similar margin: how sure the reward model was, and how often it was right."""

    margin_low: float
    margin_high: float
    predicted: float
    accuracy: float
    low: float
    high: float
    n: int


def calibration(
    margins: ArrayLike, bins: int = 10, confidence: float = 0.95, groups: ArrayLike | None = None
) -> list[CalibrationBin]:
    """Return accuracy by size of the margin, in bins of equally many pairs; those of one group go together.

    ``margins`` are the scores of the better response minus those of the worse one. Under the Bradley–Terry model the
    response with the higher score is the better one with probability ``sigmoid(|margin|)``, the bin's `predicted`.
    """
    margins_N = np.asarray(margins, dtype=np.float64)
    groups_N = np.arange(margins_N.size) if groups is None else np.asarray(groups)
    order = np.argsort(np.abs(margins_N), kind="stable")
    found = []
    for places in np.array_split(order, min(bins, margins_N.size)):
        part, sizes = margins_N[places], np.abs(margins_N[places])
        accuracy = clustered_proportion(pair_accuracy(part), groups_N[places], confidence)
        predicted = float((1 / (1 + np.exp(-sizes))).mean())
        found.append(
            CalibrationBin(
                float(sizes[0]), float(sizes[-1]), predicted, accuracy.value, accuracy.low, accuracy.high, accuracy.n
            )
        )
    return found


def calibration_error(bins: list[CalibrationBin]) -> float:
    """Return the expected calibration error: the mean gap between `predicted` and `accuracy`, weighted by pairs."""
    return sum(b.n * abs(b.accuracy - b.predicted) for b in bins) / sum(b.n for b in bins)


def pair_accuracy(margins: ArrayLike) -> NDArray[np.float64]:
    """Return 1 where the better response scores higher, 0 where it scores lower, ½ where both score the same."""
    return (np.sign(np.asarray(margins, dtype=np.float64)) + 1) / 2
