"""Annotators of comparisons: how far they agree, and whether they prefer what is longer or listed first.

How much length and place count is a Bradley–Terry model (1952) with covariates: the logarithm of the odds that one
response is preferred to another is b₁ · log(length / other length) + b₂ · (listed first: 1, second: −1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.data.steps.judgements import Judgement, by_unit, consensus
from posttrain.evaluate.measure.statistics import bootstrap_sums, clustered_proportion, percentile_interval

Floats = NDArray[np.float64]

COVARIATES = ("length", "listed_first")
MOST = 20
"""Annotators of whom figures are given, those of most judgements."""
_ROUNDS = 30
_RIDGE = 1e-3
"""Keeps coefficients finite where one side always wins."""


def annotator_figures(
    judgements: Sequence[Judgement], confidence: float, resamples: int, seed: int
) -> dict[str, Any] | None:
    """Return the figures of all annotators and of each, or None where nothing was judged. Prompts are resampled.

    Place is left out where every row lists the better response first, since that is how the file was written.
    """
    if not judgements:
        return None
    units = list(by_unit(judgements).values())
    several = [unit for unit in units if len({one.annotator for one in unit}) > 1]
    own: dict[str, list[Judgement]] = {}
    for one in judgements:
        own.setdefault(one.annotator, []).append(one)
    shown = sorted(own, key=lambda name: (-len(own[name]), name))[:MOST]
    placed = any(one.value * one.listed < 0 for one in judgements)
    return {
        "pairs": len(units),
        "judgements": len(judgements),
        "ties": sum(one.value == 0 for one in judgements),
        "annotators": len(own),
        "judged_by_several": len(several),
        "alpha": _alpha(several, confidence, resamples, seed),
        "overall": _preferences(judgements, placed, confidence, resamples, seed),
        "by_annotator": {
            name: _preferences(own[name], placed, confidence, resamples, seed)
            | {"consensus": _with_others(name, several, confidence)}
            for name in shown
        },
    }


def _alpha(units: Sequence[Sequence[Judgement]], confidence: float, resamples: int, seed: int) -> dict[str, Any] | None:
    """Return Krippendorff's alpha of units seen from both sides, with its bootstrap interval over prompts.

    Seen from both sides, values are symmetric about 0, so that the expected disagreement follows from how many there
    are, N, and how many are preferences, P: N · P / (N − 1).
    """
    if not units:
        return None
    prompts_U = np.unique([unit[0].prompt for unit in units], return_inverse=True)[1]
    sums_GK = np.zeros((int(prompts_U.max()) + 1, 3))
    np.add.at(sums_GK, prompts_U, [_disagreement([one.value for one in unit]) for unit in units])
    alphas_R = _alphas(np.vstack([sums_GK.sum(axis=0), bootstrap_sums(sums_GK, resamples, seed)]))
    if np.isnan(alphas_R[0]):
        return None
    drawn = alphas_R[1:][~np.isnan(alphas_R[1:])]
    return dataclasses.asdict(percentile_interval(float(alphas_R[0]), drawn, len(units), confidence))


def _disagreement(values: Sequence[int]) -> tuple[float, int, int]:
    """Return of one pair the squared differences of every two values over m − 1, the values, and the preferences."""
    count, total, squares = len(values), sum(values), sum(value * value for value in values)
    return 2 * (count * squares - total * total) / (count - 1), count, squares


def _alphas(sums_RK: Floats) -> Floats:
    observed_R, values_R, preferences_R = 2 * sums_RK.T
    with np.errstate(invalid="ignore", divide="ignore"):
        alphas_R: Floats = 1 - observed_R * (values_R - 1) / (2 * values_R * preferences_R)
    return alphas_R


def _with_others(name: str, several: Sequence[Sequence[Judgement]], confidence: float) -> dict[str, Any] | None:
    """Return how often an annotator says what most of the others do; a tie and a preference are half the same."""
    same, prompts = [], []
    for unit in several:
        others = [one.value for one in unit if one.annotator != name]
        for one in unit:
            if one.annotator == name and others:
                same.append(1 - abs(one.value - consensus(others)) / 2)
                prompts.append(one.prompt)
    return dataclasses.asdict(clustered_proportion(same, prompts, confidence)) if same else None


def _preferences(
    judgements: Sequence[Judgement], placed: bool, confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    untied = [one for one in judgements if one.value]
    kinds = {"longer_wins": [one for one in untied if one.log_length]}
    if placed:
        kinds["first_wins"] = untied
    figures: dict[str, Any] = {"judgements": len(judgements)}
    for kind, own in kinds.items():
        side = [one.log_length if kind == "longer_wins" else one.listed for one in own]
        wins = [one.value * np.sign(by) > 0 for one, by in zip(own, side, strict=True)]
        share = clustered_proportion(wins, [one.prompt for one in own], confidence) if own else None
        figures[kind] = None if share is None else dataclasses.asdict(share)
    return figures | {"bradley_terry": _coefficients(untied, placed, confidence, resamples, seed)}


def _coefficients(
    untied: Sequence[Judgement], placed: bool, confidence: float, resamples: int, seed: int
) -> dict[str, Any] | None:
    """Return the coefficient of each covariate that varies, with its bootstrap interval over prompts."""
    if not untied:
        return None
    differences_NC = np.array([[one.value * one.log_length, one.value * one.listed] for one in untied])
    used = [place for place in range(2) if (placed or place == 0) and differences_NC[:, place].any()]
    if not used:
        return None
    prompts_N = np.unique([one.prompt for one in untied], return_inverse=True)[1]
    count = int(prompts_N.max()) + 1
    rng = np.random.default_rng(seed)
    fitted_C = bradley_terry(differences_NC[:, used], np.ones(len(untied)))
    draws_RC = np.array(
        [
            bradley_terry(differences_NC[:, used], rng.multinomial(count, np.full(count, 1 / count))[prompts_N])
            for _ in range(resamples)
        ]
    )
    return {
        COVARIATES[place]: dataclasses.asdict(
            percentile_interval(float(fitted_C[column]), draws_RC[:, column], len(untied), confidence)
        )
        for column, place in enumerate(used)
    }


def bradley_terry(differences_NC: Floats, weights_N: NDArray[Any]) -> Floats:
    """Return the coefficients, by Newton's method, under which what was preferred is most likely.

    ``differences_NC`` are the covariates of the preferred response minus those of the other.
    """
    fitted_C = np.zeros(differences_NC.shape[1])
    for _ in range(_ROUNDS):
        lost_N = 1 / (1 + np.exp(np.clip(differences_NC @ fitted_C, -30, 30)))
        gradient_C = differences_NC.T @ (weights_N * lost_N) - _RIDGE * fitted_C
        curvature_CC = (differences_NC * (weights_N * lost_N * (1 - lost_N))[:, None]).T @ differences_NC
        step_C = np.linalg.solve(curvature_CC + _RIDGE * np.eye(len(fitted_C)), gradient_C)
        fitted_C = fitted_C + step_C * min(1.0, 2 / max(float(np.abs(step_C).max()), 1e-12))
        if np.abs(step_C).max() < 1e-8:
            break
    return fitted_C
