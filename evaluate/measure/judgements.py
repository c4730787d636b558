"""What a judge said of pairs of responses, and what follows: win rates, its love for a place, and people's agreement.

Letters of array shapes: N pairs, G clusters, R resamples.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.evaluate.measure.agreement import kappa_interval
from posttrain.evaluate.measure.paired import paired_change
from posttrain.evaluate.measure.statistics import Interval, clustered_proportion, percentile_interval
from posttrain.sample.backends.judge import Place

_RIDGE = 0.1
"""Weight of the penalty on slope and level, so that pairs that all go one way have a finite fit."""
_STEPS, _LONGEST_STEP, _NEAR = 40, 1.0, 1e-7
LENGTH_RESAMPLES = 500
_VALUES = {"first": 0.0, "tie": 0.5, "second": 1.0}
SWAPPED: dict[Place, Place] = {"first": "second", "second": "first", "tie": "tie"}


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A pair of responses, and the places that the judge preferred: with the one first, and with the other first."""

    id: str
    task: str
    language: str
    cluster: str
    places: tuple[Place | None, Place | None]
    """None where a reply holds no verdict."""
    lengths: tuple[int, int]
    """Words of the one and of the other."""
    people: Place | None = None
    """What people say of the pair, where they were asked."""
    grades: tuple[float | None, float | None] | None = None
    """Of the one and of the other, 0 to 1, where each was graded by itself."""

    @property
    def verdict(self) -> Place | None:
        """Which is better, the one (first) or the other (second): a tie where the orders disagree; None unread."""
        straight, swapped = self.places
        if straight is None or swapped is None:
            return None
        return straight if straight == SWAPPED[swapped] else "tie"


def summarise_judgements(judgements: Sequence[Judgement], confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Return how often the other response wins, over all and by task and language, and what the judge is like.

    Ties are half a win. Pairs without a verdict are left out and counted as ``unread``. Raises ValueError when there is
    none with one.
    """
    read = [judgement for judgement in judgements if judgement.verdict is not None]
    if not read:
        raise ValueError(f"no verdict in the replies about {len(judgements)} pairs")
    return {
        "overall": _wins(read, confidence),
        "length_controlled": length_controlled(read, confidence, seed).as_dict(),
        "by_task": _by(read, lambda one: one.task, confidence),
        "by_language": _by(read, lambda one: one.language, confidence),
        "unread": len(judgements) - len(read),
        "position": _position(read, confidence),
    }


def summarise_grades(judgements: Sequence[Judgement], confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Return what `summarise_judgements` does of the response with the better grade, and the grades themselves.

    ``before`` and ``after`` are mean grades, and ``rise`` how much the other response's are higher.
    """
    summary = summarise_judgements(judgements, confidence, seed)
    read = [one for one in judgements if one.verdict is not None]
    clusters = [one.cluster for one in read]
    before, after = ([float(one.grades[place] or 0) for one in read if one.grades is not None] for place in (0, 1))
    return summary | {
        "before": clustered_proportion(before, clusters, confidence).as_dict(),
        "after": clustered_proportion(after, clusters, confidence).as_dict(),
        "rise": paired_change(before, after, clusters, confidence, seed=seed).as_dict(),
    }


def summarise_agreement(judgements: Sequence[Judgement], confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Return how far people agree with the verdicts: share and kappa, over all and by language.

    Raises ValueError when no pair has a verdict.
    """
    read = [judgement for judgement in judgements if judgement.verdict is not None]
    if not read:
        raise ValueError(f"no verdict in the replies about {len(judgements)} pairs")
    languages: dict[str, list[Judgement]] = defaultdict(list)
    for one in read:
        languages[one.language].append(one)
    return {
        "overall": _agreement(read, confidence, seed),
        "by_language": {name: _agreement(languages[name], confidence, seed) for name in sorted(languages)},
        "unread": len(judgements) - len(read),
        "position": _position(read, confidence),
    }


def _agreement(read: Sequence[Judgement], confidence: float, seed: int) -> dict[str, Any]:
    clusters = [one.cluster for one in read]
    people, verdicts = [one.people for one in read], [one.verdict for one in read]
    same = clustered_proportion([a == b for a, b in zip(people, verdicts, strict=True)], clusters, confidence)
    beyond = kappa_interval(people, verdicts, clusters, confidence, seed=seed)
    return {"same": same.as_dict(), "kappa": beyond.as_dict()}


def _wins(read: Sequence[Judgement], confidence: float) -> dict[str, Any]:
    wins = clustered_proportion(values_of(read), [one.cluster for one in read], confidence)
    return {"win_rate": wins.as_dict(), "ties": sum(one.verdict == "tie" for one in read) / len(read)}


def _by(read: Sequence[Judgement], key: Callable[[Judgement], str], confidence: float) -> dict[str, Any]:
    parts: dict[str, list[Judgement]] = defaultdict(list)
    for one in read:
        parts[key(one)].append(one)
    return {name: _wins(parts[name], confidence) for name in sorted(parts)}


def _position(read: Sequence[Judgement], confidence: float) -> dict[str, Any]:
    """Return how often the first place wins of the replies that prefer one, and how often the orders disagree."""
    firsts = [(place == "first", one.cluster) for one in read for place in one.places if place != "tie"]
    share = (
        clustered_proportion([first for first, _ in firsts], [name for _, name in firsts], confidence)
        if firsts
        else None
    )
    return {
        "first": None if share is None else share.as_dict(),
        "biased": share is not None and not share.low <= 0.5 <= share.high,
        "orders_disagree": sum(one.places[0] != SWAPPED[one.places[1] or "tie"] for one in read) / len(read),
    }


def values_of(read: Sequence[Judgement]) -> list[float]:
    """Return 1 where the other response wins, 0 where the one does, and a half for a tie."""
    return [_VALUES[one.verdict or "tie"] for one in read]


def length_controlled(read: Sequence[Judgement], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the win rate that is to be expected where both responses are equally long.

    A logistic regression of the win on ``tanh(difference of lengths / its standard deviation)``, taken at no difference
    (the length term of Dubois et al. 2024), with a percentile bootstrap over clusters.
    """
    wins_N = np.array(values_of(read))
    gaps_N = np.array([one.lengths[1] - one.lengths[0] for one in read], dtype=np.float64)
    spread = float(gaps_N.std())
    features_N = np.tanh(gaps_N / spread) if spread > 0 else np.zeros_like(gaps_N)
    owners_N = np.unique([one.cluster for one in read], return_inverse=True)[1]
    count = int(owners_N.max()) + 1
    draws_RG = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=LENGTH_RESAMPLES)
    levels_R = _levels(wins_N, features_N, np.concatenate([np.ones((1, len(read))), draws_RG[:, owners_N]]))
    shares_R = 1 / (1 + np.exp(-levels_R))
    return percentile_interval(float(shares_R[0]), shares_R[1:], len(read), confidence)


def _levels(wins_N: ArrayLike, features_N: NDArray[np.float64], weights_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the constant of a logistic regression with one feature, for each row of weights, by Newton's method."""
    wins = np.asarray(wins_N)
    level_R, slope_R = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    for _ in range(_STEPS):
        chance_RN = 1 / (1 + np.exp(-(level_R[:, None] + slope_R[:, None] * features_N)))
        error_RN, curve_RN = weights_RN * (wins - chance_RN), weights_RN * chance_RN * (1 - chance_RN)
        up_level, up_slope = error_RN.sum(1) - _RIDGE * level_R, error_RN @ features_N - _RIDGE * slope_R
        a, b, c = curve_RN.sum(1) + _RIDGE, curve_RN @ features_N, curve_RN @ features_N**2 + _RIDGE
        determinant = a * c - b * b
        by_R = _step((c * up_level - b * up_slope) / determinant)
        level_R, slope_R = level_R + by_R, slope_R + _step((a * up_slope - b * up_level) / determinant)
        if np.abs(by_R).max() < _NEAR:
            break
    return level_R


def _step(move_R: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(move_R, -_LONGEST_STEP, _LONGEST_STEP)
