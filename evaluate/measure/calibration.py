"""Is a policy right as often as it is sure, and when should it say nothing? Pure functions of confidence and outcome.

Letters of array shapes: N responses, B bins, C distinct confidences.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from posttrain.evaluate.measure.statistics import proportion


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Responses of similar confidence: how sure the policy was, and how often it was right."""

    predicted: float
    accuracy: float
    low: float
    high: float
    n: int


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 10, interval: float = 0.95
) -> list[ReliabilityBin]:
    """Return accuracy by confidence, in bins of equally many responses; equal confidences share a bin.

    ``confidence`` lies in [0, 1], as ``correct`` does; accuracy comes with Wilson's interval. Raises ValueError when
    they differ in length or are empty.
    """
    confidence_N, correct_N = _checked(confidence, correct)
    order = np.argsort(confidence_N, kind="stable")
    confidence_N, correct_N = confidence_N[order], correct_N[order]
    # A bin ends where the rank passes the next share of N; moving the cut to the end of a run keeps ties together.
    cuts = [round(confidence_N.size * share / bins) for share in range(1, bins)]
    ends = sorted({int(np.searchsorted(confidence_N, confidence_N[cut - 1], side="right")) for cut in cuts if cut})
    parts = zip(np.split(confidence_N, ends), np.split(correct_N, ends), strict=True)
    found = []
    for sure, right in parts:
        if right.size:
            accuracy = proportion(right, interval)
            found.append(ReliabilityBin(float(sure.mean()), accuracy.value, accuracy.low, accuracy.high, accuracy.n))
    return found


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Return the mean gap between confidence and accuracy, each bin weighted by its responses (Naeini et al. 2015)."""
    return sum(b.n * abs(b.accuracy - b.predicted) for b in bins) / sum(b.n for b in bins)


@dataclasses.dataclass(frozen=True)
class RiskCoverage:
    """What share of wrong answers comes with each share of answered prompts, the surest answered first."""

    thresholds: list[float]
    """Descending; all responses of at least this confidence are answered."""
    coverage: list[float]
    risk: list[float]
    """Share of wrong ones among the answered."""
    area: float
    """Area under the curve (AURC, Geifman et al. 2019): the mean risk over coverages 1/N … 1, ties in random order."""
    least_area: float
    """The same for a confidence that ranks every right response before every wrong one."""


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Return the risk–coverage curve of answering what is at least so sure.

    Raises ValueError when the inputs differ in length or are empty.
    """
    confidence_N, correct_N = _checked(confidence, correct)
    values_C, place_N, counts_C = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    wrong_C = np.bincount(place_N, weights=1 - correct_N)
    answered_C, errors_C = np.cumsum(counts_C), np.cumsum(wrong_C)
    return RiskCoverage(
        thresholds=(-values_C).tolist(),
        coverage=(answered_C / correct_N.size).tolist(),
        risk=(errors_C / answered_C).tolist(),
        area=_area(np.repeat(wrong_C / counts_C, counts_C)),
        least_area=_area(np.sort(1 - correct_N)),
    )


def _area(wrong_N: NDArray[np.float64]) -> float:
    return float((np.cumsum(wrong_N) / np.arange(1, wrong_N.size + 1)).mean())


@dataclasses.dataclass(frozen=True)
class Abstention:
    """Answer what is surer than a threshold, abstain from the rest."""

    threshold: float
    """Minus infinity where everything may be answered."""
    coverage: float
    """Share of the held-out responses that are answered."""
    risk: float
    """Share of wrong ones among them."""
    risk_bound: float
    """With the confidence asked for, at most this share of what is answered will be wrong."""
    n: int
    """Held-out responses."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the threshold None where there is none."""
        plain = dataclasses.asdict(self)
        return plain | {"threshold": self.threshold if math.isfinite(self.threshold) else None}


def abstention_threshold(
    confidence: ArrayLike, correct: ArrayLike, max_risk: float, error: float = 0.05, levels: int = 20
) -> Abstention | None:
    """Return the threshold of most coverage at which no more than ``max_risk`` of the answers are wrong, or None.

    The guarantee: with probability at least ``1 − error`` over the held-out responses given here, the chance that an
    answered response is wrong is at most `risk_bound`, itself at most ``max_risk``, for new responses from the same
    distribution. It says nothing of another distribution, nor of one task among many.

    Why: candidates are the confidences at ``levels`` fixed ranks. Given the value at a rank, the responses above it are
    independent draws from those above that value, so the number of wrong ones is binomial, and Clopper and Pearson's
    exact bound at level ``error / levels`` fails at one candidate with at most that probability; so at any of them with
    at most ``error``. Choosing among them afterwards is free.

    Raises ValueError when an outcome is neither 0 nor 1, or the inputs differ in length or are empty.
    """
    confidence_N, correct_N = _checked(confidence, correct)
    if not np.isin(correct_N, (0, 1)).all():
        raise ValueError("outcomes between 0 and 1; the bound needs right (1) or wrong (0)")
    descending_N = -np.sort(-confidence_N)
    best: Abstention | None = None
    for level in range(1, levels + 1):
        rank = math.ceil(confidence_N.size * level / levels)
        threshold = float(descending_N[rank]) if rank < confidence_N.size else -math.inf
        answered = confidence_N > threshold
        n = int(answered.sum())
        wrong = n - int(correct_N[answered].sum())
        bound = _upper_bound(wrong, n, error / levels)
        if n and bound <= max_risk and (best is None or n / confidence_N.size > best.coverage):
            best = Abstention(threshold, n / confidence_N.size, wrong / n, bound, confidence_N.size)
    return best


def _upper_bound(wrong: int, n: int, error: float) -> float:
    """Return Clopper and Pearson's one-sided upper bound of a share, of which ``wrong`` of ``n`` were seen."""
    return 1.0 if wrong == n else float(stats.beta.ppf(1 - error, wrong + 1, n - wrong))


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    confidence_N, correct_N = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence_N.shape != correct_N.shape or not confidence_N.size:
        raise ValueError(f"{confidence_N.size} confidences and {correct_N.size} outcomes; give both for each response")
    return confidence_N, correct_N
