"""What choosing among N samples buys, and how far to trust a choice: figures of many items.

Letters of array shapes: N samples of an item, I items.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.evaluate.measure.calibration import (
    abstention_threshold,
    expected_calibration_error,
    reliability_bins,
    risk_coverage,
)
from posttrain.evaluate.measure.statistics import mean_interval, paired_bootstrap, proportion
from posttrain.sample.choose.answers import majority
from posttrain.sample.choose.confidence import certainty, self_consistency
from posttrain.sample.choose.curves import best_of_k, best_of_n_kl, majority_at_k

SELECTORS = ("logprob", "reward", "majority", "oracle")
"""How one of k samples is chosen: by average log-probability, by the reward model, by vote, and by the truth."""
MEASURES = ("correct", "preference")


@dataclasses.dataclass(frozen=True)
class SampledItem:
    """The samples of one evaluation item, with all that selection may go by and all that judges it."""

    id: str
    task: str
    language: str
    prompt_tokens: int
    responses: list[str]
    """All that was said."""
    texts: list[str]
    """What stands behind the reasoning."""
    answers: list[str | None]
    """The same as keys of votes."""
    tokens: list[int]
    reasoning_tokens: list[int]
    ended: list[bool]
    logprobs: list[float]
    """Average log-probability of each sample, reasoning included; −∞ without an answer."""
    rewards: list[float]
    """Of the reward model, or of several together."""
    correct: list[float]
    preference: list[float] | None
    """True preference for each sample; None for an item without an ideal response."""
    member_rewards: list[list[float]] = dataclasses.field(default_factory=list)
    """Those of each reward model, a list for each."""

    def values(self, measure: str) -> list[float] | None:
        """Return the samples' values by one of `MEASURES`."""
        return self.correct if measure == "correct" else self.preference


def sizes_up_to(num_samples: int) -> list[int]:
    """Return the powers of two up to a number, and the number itself."""
    return sorted({*(1 << e for e in range(num_samples.bit_length())), num_samples})


def curve_figures(items: Sequence[SampledItem], resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    """Return value, gain over one sample and cost for each number of samples, selector and measure.

    Every estimate is the unbiased one of `posttrain.sample.choose.curves`, averaged over the items.
    """
    sizes = sizes_up_to(len(items[0].responses))
    curves: dict[str, Any] = {}
    for measure in MEASURES:
        judged = [item for item in items if item.values(measure) is not None]
        if judged:
            curves[measure] = {
                selector: _curve(judged, sizes, selector, measure, resamples, confidence, seed)
                for selector in SELECTORS
            }
    return {
        "items": len(items),
        "confidence": confidence,
        "sizes": sizes,
        "cost": [_cost(items, k) for k in sizes],
        "curves": curves,
        "over_optimisation": _over_optimisation(items, sizes, confidence),
        "correct_by_task": {
            task: _means_by_selector([item for item in items if item.task == task], sizes)
            for task in sorted({item.task for item in items})
        },
        "reasoning_by_task": _reasoning_by_task(items),
    }


def _reasoning_by_task(items: Sequence[SampledItem]) -> dict[str, float]:
    """Return the mean length of the reasoning in tokens for each task that has any."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for item in items:
        by_task[item.task] += item.reasoning_tokens
    return {task: float(np.mean(tokens)) for task, tokens in sorted(by_task.items()) if any(tokens)}


def _means_by_selector(items: Sequence[SampledItem], sizes: Sequence[int]) -> dict[str, list[float]]:
    return {selector: _expected(items, sizes, selector, "correct").mean(axis=0).tolist() for selector in SELECTORS}


def _expected(items: Sequence[SampledItem], sizes: Sequence[int], selector: str, measure: str) -> NDArray[np.float64]:
    """Return the expected value of what a selector picks, by item and number of samples."""
    return np.array([[_expected_of_item(item, k, selector, measure) for k in sizes] for item in items])


def _expected_of_item(item: SampledItem, k: int, selector: str, measure: str) -> float:
    values = item.values(measure)
    assert values is not None
    if selector == "majority":
        return majority_at_k(item.answers, values, k)
    return best_of_k({"logprob": item.logprobs, "reward": item.rewards, "oracle": values}[selector], values, k)


def _curve(
    items: Sequence[SampledItem],
    sizes: Sequence[int],
    selector: str,
    measure: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    expected = _expected(items, sizes, selector, measure)
    interval = proportion if measure == "correct" else mean_interval
    points = []
    for place, k in enumerate(sizes):
        gain = paired_bootstrap(expected[:, 0], expected[:, place], confidence, resamples, seed)
        points.append({"k": k, **interval(expected[:, place], confidence).as_dict(), "gain": gain.as_dict()})
    return points


def _cost(items: Sequence[SampledItem], k: int) -> dict[str, float]:
    return {
        "k": k,
        "prompt_tokens": float(np.mean([item.prompt_tokens for item in items])),
        "new_tokens": k * float(np.mean([np.mean(item.tokens) for item in items])),
        "kl_bound": best_of_n_kl(k),
    }


def _over_optimisation(items: Sequence[SampledItem], sizes: Sequence[int], confidence: float) -> dict[str, Any] | None:
    """Return what the sample of the highest reward gains over one sample, by the reward and by the true preference.

    Both gains count in standard deviations among the samples of one item, which makes them comparable: a proxy that
    goes on rising while the truth falls is over-optimised. None without true preferences.
    """
    judged = [item for item in items if item.preference is not None]
    if not judged:
        return None
    proxy = [item.rewards for item in judged]
    gold = [item.preference or [] for item in judged]
    return {
        "items": len(judged),
        "proxy": _standardised_gains(proxy, proxy, sizes, confidence),
        "gold": _standardised_gains(proxy, gold, sizes, confidence),
        "best_gold": _standardised_gains(gold, gold, sizes, confidence),
    }


def _standardised_gains(
    proxies: Sequence[Sequence[float]], values: Sequence[Sequence[float]], sizes: Sequence[int], confidence: float
) -> list[dict[str, Any]]:
    spread = float(np.sqrt(np.mean([np.var(own, ddof=1) for own in values]))) or 1.0
    chosen = np.array([[best_of_k(p, v, k) for k in sizes] for p, v in zip(proxies, values, strict=True)])
    gains = (chosen - chosen[:, :1]) / spread
    return [{"k": k, **mean_interval(gains[:, place], confidence).as_dict()} for place, k in enumerate(sizes)]


CONFIDENCES: dict[str, Callable[[SampledItem, int], float]] = {
    "likelihood": lambda item, chosen: float(np.exp(item.logprobs[chosen])),
    "self-consistency": lambda item, chosen: self_consistency(item.answers),
    "certainty": lambda item, chosen: certainty(item.answers),
}
"""How sure the policy is of the majority's answer, in [0, 1], by name."""


def calibration_figures(items: Sequence[SampledItem], max_risk: float, confidence: float, seed: int) -> dict[str, Any]:
    """Return how each measure of confidence fits the correctness of the majority's answer, over all items.

    The abstention threshold is chosen on one random half of the items and tried on the other. A response counts as
    right when it is fully so.
    """
    chosen = [majority(item.answers)[0] for item in items]
    correct_I = np.array([item.correct[index] >= 1 for item, index in zip(items, chosen, strict=True)], dtype=float)
    held_out_I = np.random.default_rng(seed).permutation(len(items)) < len(items) // 2
    figures = {}
    for name, measure in CONFIDENCES.items():
        sure_I = np.array([measure(item, index) for item, index in zip(items, chosen, strict=True)])
        bins = reliability_bins(sure_I, correct_I, interval=confidence)
        figures[name] = {
            "calibration_error": expected_calibration_error(bins),
            "bins": [dataclasses.asdict(part) for part in bins],
            **dataclasses.asdict(risk_coverage(sure_I, correct_I)),
            "abstention": _abstention(sure_I, correct_I, held_out_I, max_risk, 1 - confidence),
        }
    return {"items": len(items), "risk": float(1 - correct_I.mean()), "max_risk": max_risk, "confidences": figures}


def _abstention(
    sure_I: NDArray[np.float64],
    correct_I: NDArray[np.float64],
    held_out_I: NDArray[np.bool_],
    max_risk: float,
    error: float,
) -> dict[str, Any] | None:
    found = abstention_threshold(sure_I[held_out_I], correct_I[held_out_I], max_risk, error)
    if found is None:
        return None
    answered = sure_I[~held_out_I] > found.threshold
    right = correct_I[~held_out_I][answered]
    tried = {"coverage": float(answered.mean()), "risk": float(1 - right.mean()) if right.size else None}
    return {**found.as_dict(), "tried_on": {"n": int((~held_out_I).sum()), **tried}}
