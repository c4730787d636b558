"""Is a policy better than another on the same items? Differences, clustered by question, and how much could be seen.

Items that ask one question, as its translations do, are one cluster: they win and lose together, and counting each for
itself makes an interval too narrow (Miller 2024, "Adding Error Bars to Evals"). An interval that holds zero means that
no difference was seen, never that there is none: the detectable difference says how large one could have hidden.

Letters of array shapes: N items, G clusters, M clusters that changed, R resamples, P p-values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posttrain.evaluate.measure.statistics import bootstrap_sums

MANY_CHANGED = 50
"""Changed clusters from which on the bootstrap is used; under them its intervals are too narrow."""
_ENUMERATED = 14
"""Changed clusters of which all patterns of signs are tried."""
_DRAWN = 500
"""Changed clusters of which patterns are drawn; more are as good as normal."""
_PATTERNS = 1 << 13


@dataclasses.dataclass(frozen=True)
class Change:
    """The mean of ``after − before`` over items, with what can be said of it."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    error: float
    """Standard error, clustered."""
    p_value: float
    """Two-sided, of the sign-flip test over clusters."""
    fall_p_value: float
    """One-sided: how likely so low a mean is where nothing changed."""
    rise_p_value: float
    """One-sided: how likely so high a mean is where nothing changed."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


def paired_change(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Change:
    """Return the change of scores, which lie about 1 apart at most, over the same items.

    Without ``clusters`` each item is its own.

    Where `MANY_CHANGED` clusters changed, the interval is the BCa bootstrap's over clusters (Efron 1987). Where fewer
    did, it is Student's t at the cluster-robust error with one pseudo-cluster won and one lost, half each, added
    (Agresti & Min 2005 for paired shares). Where none did, it is as wide as the share of changes that may have escaped
    (Clopper–Pearson with no success). Raises ValueError when the inputs differ in length or are empty.
    """
    before_N, after_N = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if (
        before_N.shape != after_N.shape
        or not before_N.size
        or (clusters is not None and len(clusters) != before_N.size)
    ):
        raise ValueError(f"{before_N.size} scores before and {after_N.size} after; give both for the same items")
    differences_N = after_N - before_N
    sums_G, sizes_G = _cluster_sums(differences_N, clusters)
    changed = int(np.count_nonzero(sums_G))
    value = float(sums_G.sum() / sizes_G.sum())
    error = _clustered_error(sums_G, sizes_G)
    if not changed:
        low, high = -_escaped(sums_G.size, confidence), _escaped(sums_G.size, confidence)
    elif changed >= MANY_CHANGED:
        low, high = bca_interval(sums_G, sizes_G, confidence, resamples, seed)
    else:
        half = float(stats.t.ppf(0.5 + confidence / 2, max(1, sums_G.size - 1))) * error
        centre = value * sums_G.size / (sums_G.size + 2)
        low, high = centre - half, centre + half
    p_value, fall, rise = sign_flip(sums_G[sums_G != 0], seed)
    most = max(1.0, float(np.abs(differences_N).max()))
    low, high = max(-most, min(low, value)), min(most, max(high, value))
    return Change(value, low, high, before_N.size, sums_G.size, error, p_value, fall, rise)


def _cluster_sums(
    values_N: NDArray[np.float64], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if clusters is None:
        return values_N, np.ones_like(values_N)
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    owners_N = np.array([places[name] for name in clusters])
    sums_G = np.bincount(owners_N, weights=values_N)
    # Scores are sums of hundredths: what is left of a won and a lost one is no change.
    return np.where(np.abs(sums_G) < 1e-9, 0.0, sums_G), np.bincount(owners_N).astype(np.float64)


def _clustered_error(sums_G: NDArray[np.float64], sizes_G: NDArray[np.float64]) -> float:
    """Return the cluster-robust standard error, the two half pseudo-clusters included."""
    count = sums_G.size
    residuals_G = (sums_G - sums_G.sum() / sizes_G.sum() * sizes_G) / sizes_G.mean()
    return math.sqrt((float((residuals_G**2).sum()) + 1) / (count + 1) / (count + 2))


def _escaped(clusters: int, confidence: float) -> float:
    return float(1 - ((1 - confidence) / 2) ** (1 / clusters))


def bca_interval(
    sums_G: ArrayLike, sizes_G: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the BCa bootstrap interval of ``Σ sums / Σ sizes`` over resampled clusters (Efron 1987).

    Bias-corrected and accelerated; the acceleration is the jackknife's.
    """
    parts_G2 = np.stack([np.asarray(sums_G, dtype=np.float64), np.asarray(sizes_G, dtype=np.float64)], axis=1)
    sums_R2 = bootstrap_sums(parts_G2, resamples, seed)
    draws_R = sums_R2[:, 0] / sums_R2[:, 1]
    total, size = parts_G2.sum(0)
    below = float(((draws_R < total / size).mean() + (draws_R <= total / size).mean()) / 2)
    bias = float(stats.norm.ppf(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    left_out_G = (total - parts_G2[:, 0]) / (size - parts_G2[:, 1])
    pulls_G = left_out_G.mean() - left_out_G
    scale = float((pulls_G**2).sum()) ** 1.5
    acceleration = float((pulls_G**3).sum()) / (6 * scale) if scale > 0 else 0.0
    z_2 = stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2]) + bias
    low, high = np.quantile(draws_R, stats.norm.cdf(bias + z_2 / (1 - acceleration * z_2)))
    return float(low), float(high)


def sign_flip(sums_M: ArrayLike, seed: int = 0) -> tuple[float, float, float]:
    """Return p-values, two-sided, of a fall and of a rise, where each sum might as well have had the other sign.

    Exact up to 14 sums, where all patterns are tried: of sums ±1 it is then McNemar's exact test. Of up to 500 sums
    2¹³ patterns are drawn; the total of more is taken as normal.
    """
    values_M = np.asarray(sums_M, dtype=np.float64)
    if not values_M.size:
        return 1.0, 1.0, 1.0
    total = float(values_M.sum())
    if values_M.size > _DRAWN:
        z = total / math.sqrt(float((values_M**2).sum()))
        return float(2 * stats.norm.sf(abs(z))), float(stats.norm.cdf(z)), float(stats.norm.sf(z))
    exact = values_M.size <= _ENUMERATED
    if exact:
        flips = (np.arange(1 << values_M.size)[:, None] >> np.arange(values_M.size)) & 1
    else:
        flips = np.random.default_rng(seed).integers(0, 2, size=(_PATTERNS, values_M.size), dtype=np.int8)
    totals_R = (1 - 2 * flips) @ values_M
    slack = 1e-9 * float(np.abs(values_M).sum())
    tails = (np.abs(totals_R) >= abs(total) - slack, totals_R <= total + slack, totals_R >= total - slack)
    seen = 0 if exact else 1  # the pattern that was seen is one of those drawn
    both, fall, rise = ((int(tail.sum()) + seen) / (totals_R.size + seen) for tail in tails)
    return both, fall, rise


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979): under α, all that are, are true with error rate α."""
    order = np.argsort(p_values, kind="stable")
    adjusted, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted


def detectable(error: float, confidence: float = 0.95, power: float = 0.8, two_sided: bool = True) -> float:
    """Return the least true difference that is seen with probability ``power``, given a standard error."""
    return (_critical(confidence, two_sided) + float(stats.norm.ppf(power))) * error


def power_at(difference: float, error: float, confidence: float = 0.95, two_sided: bool = True) -> float:
    """Return how likely a true difference of that size is seen, given a standard error."""
    if error <= 0:
        return 1.0
    return float(stats.norm.cdf(abs(difference) / error - _critical(confidence, two_sided)))


def _critical(confidence: float, two_sided: bool) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2 if two_sided else confidence))


def expected_error(sizes_G: ArrayLike, discordant: float, together: float) -> float:
    """Return the standard error to expect of a change of which ``discordant`` of the items take part, either way.

    ``together`` is the correlation of the items of one cluster. The variance of one difference is ``discordant`` at
    most; clusters of size m weigh ``1 + (m − 1) · together`` times as much (Kish's design effect).
    """
    sizes = np.asarray(sizes_G, dtype=np.float64)
    return math.sqrt(discordant * float((sizes * (1 + (sizes - 1) * together)).sum())) / float(sizes.sum())


def correlation_within(values: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Return how alike the values of one cluster are, in [0, 1]: the intraclass correlation (one-way analysis).

    1 where all values, or all within each cluster, are equal; 0 where no cluster has two.
    """
    values_N = np.asarray(values, dtype=np.float64)
    sums_G, sizes_G = _cluster_sums(values_N, clusters)
    groups, count = sums_G.size, values_N.size
    if groups == count:
        return 0.0
    means_G = sums_G / sizes_G
    within = float((values_N**2).sum() - (sizes_G * means_G**2).sum()) / (count - groups)
    if within <= 1e-12 or groups == 1:
        return 1.0
    between = float((sizes_G * (means_G - values_N.mean()) ** 2).sum()) / (groups - 1)
    usual = (count - float((sizes_G**2).sum()) / count) / (groups - 1)
    return min(1.0, max(0.0, (between - within) / (between + (usual - 1) * within)))
