"""What sampled responses are worth and how far they lie from a reference model: their Parquet file, and figures.

Letters of array shapes: G items, K columns of `COLUMNS`, R bootstrap resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from posttrain.evaluate.measure.statistics import Interval, bootstrap_sums, percentile_interval

SAMPLES_FILE = "samples.parquet"

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "task", "language")),
        ("sample", pa.int64()),
        *((name, pa.string()) for name in ("prompt", "response")),
        ("tokens", pa.int64()),
        ("ended", pa.bool_()),
        *((name, pa.float64()) for name in ("correct", "preference", "score", "kl", "k3", "reference_logprob")),
        ("answer", pa.string()),
        ("reasoning_tokens", pa.int64()),
        ("group", pa.string()),
        ("rewards", pa.list_(pa.float64())),
    ]
)


class SampledResponse(NamedTuple):
    """One sampled response with its scores. What is in nats is a sum over its tokens."""

    id: str
    """Of the item."""
    task: str
    language: str
    sample: int
    """Its number among the samples of the item."""
    prompt: str
    response: str
    """All that was said."""
    tokens: int
    """With the token that ended it."""
    ended: bool
    """Whether the model ended its turn, with an answer, within the limit of tokens."""
    correct: float
    """Value of the item's scorer."""
    preference: float | None
    """True preference; None for items without an ideal response."""
    score: float
    """The preference, or for items without one `correct`."""
    kl: float
    """log π − log π_ref: an unbiased estimate of the KL divergence, of either sign."""
    k3: float
    """π_ref/π − 1 − log(π_ref/π) of each token: of lower variance and never negative (Schulman 2020)."""
    reference_logprob: float
    """Log-likelihood under the reference at temperature 1."""
    answer: str | None = None
    """What was scored: the response behind its reasoning; None in artifacts of before it was told apart."""
    reasoning_tokens: int = 0
    group: str | None = None
    """The question behind the item, which its translations share."""
    rewards: list[float] | None = None
    """Of each reward model that was asked, in the order of their names, each in its own standard deviations."""
    proxy: float | None = None
    """What the policy was trained on, out of those; not in the file."""

    @property
    def scored(self) -> str:
        """The text that the scores are about."""
        return self.response if self.answer is None else self.answer


def write_responses(directory: Path, responses: Iterable[SampledResponse]) -> None:
    """Write sampled responses into a drift artifact."""
    rows = [response._asdict() for response in responses]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), directory / SAMPLES_FILE)


def read_responses(directory: Path) -> list[SampledResponse]:
    """Return the sampled responses of a drift artifact."""
    return [SampledResponse(**row) for row in pq.read_table(directory / SAMPLES_FILE).to_pylist()]


def divergence(
    logprobs: NDArray[np.floating[Any]], reference_logprobs: NDArray[np.floating[Any]]
) -> tuple[float, float]:
    """Return `kl` and `k3` of one response, given its tokens' log-probabilities under policy and reference."""
    ratios = reference_logprobs.astype(np.float64) - logprobs
    return -float(ratios.sum()), float((np.expm1(ratios) - ratios).sum())


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Return the share of different ones among all n-grams of words, none of which crosses texts (Li et al. 2016).

    Words are what white space parts. None where no text has n words. It falls as more text is counted, so compare it
    between equally many responses of similar length.
    """
    words = [text.split() for text in texts]
    grams = [tuple(own[start : start + n]) for own in words for start in range(len(own) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


PROXY = "proxy"
"""The figure that is told only where reward models are known for it."""
COLUMNS = (
    *("responses", "tokens", "score", "correct", "ended", "kl", "k3", "reference_logprob", "reasoning_tokens"),
    PROXY,
)
FIGURES: dict[str, tuple[str, str]] = {
    "score": ("score", "responses"),
    "correct": ("correct", "responses"),
    "kl": ("kl", "responses"),
    "kl_per_token": ("kl", "tokens"),
    "k3_per_token": ("k3", "tokens"),
    "reference_logprob_per_token": ("reference_logprob", "tokens"),
    "length": ("tokens", "responses"),
    "reasoning_length": ("reasoning_tokens", "responses"),
    "ended": ("ended", "responses"),
    PROXY: (PROXY, "responses"),
}
"""Each figure is a sum over all responses divided by another: every response, or every token, weighs the same."""


def summarise_responses(
    responses: Sequence[SampledResponse], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return each of `FIGURES` as an `Interval` over resampled items, and distinct-1 and -2 of all answers."""
    sums = _sums_of_items(responses)
    figures = _ratios(np.array(list(sums.values())), resamples, seed)
    if not _has_proxies(responses):
        del figures[PROXY]
    return {
        "items": len(sums),
        "responses": len(responses),
        **{name: _interval(value, draws_R, confidence, len(sums)) for name, (value, draws_R) in figures.items()},
        **{f"distinct_{n}": distinct_n([one.scored for one in responses], n) for n in (1, 2)},
    }


def compare_responses(
    before: Sequence[SampledResponse],
    after: Sequence[SampledResponse],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return the change in each of `FIGURES` as an `Interval` paired by item, and the relative change in distinct-2.

    Only items that both answered count; None where there are none.
    """
    sums_before, sums_after = _sums_of_items(before), _sums_of_items(after)
    shared = [item for item in sums_before if item in sums_after]
    if not shared:
        return None
    earlier = _ratios(np.array([sums_before[item] for item in shared]), resamples, seed)
    later = _ratios(np.array([sums_after[item] for item in shared]), resamples, seed)
    if not (_has_proxies(before) and _has_proxies(after)):
        del later[PROXY]
    changes = {
        name: _interval(value - earlier[name][0], draws_R - earlier[name][1], confidence, len(shared))
        for name, (value, draws_R) in later.items()
    }
    both = set(shared)
    was, now = (distinct_n([one.scored for one in part if one.id in both], 2) for part in (before, after))
    return {"items": len(shared), **changes, "distinct_2": now / was - 1 if was and now is not None else None}


def _has_proxies(responses: Iterable[SampledResponse]) -> bool:
    return all(one.proxy is not None for one in responses)


def _sums_of_items(responses: Iterable[SampledResponse]) -> dict[str, NDArray[np.float64]]:
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(COLUMNS)))
    for one in responses:
        sums[one.id] += (1, *(getattr(one, name) or 0 for name in COLUMNS[1:]))
    return sums


def _ratios(sums_GK: NDArray[np.float64], resamples: int, seed: int) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Return for each figure its value and its values over resamples of the items."""
    total_K, draws_RK = sums_GK.sum(0), bootstrap_sums(sums_GK, resamples, seed)
    places = {name: (COLUMNS.index(over), COLUMNS.index(under)) for name, (over, under) in FIGURES.items()}
    return {
        name: (float(total_K[over] / total_K[under]), draws_RK[:, over] / draws_RK[:, under])
        for name, (over, under) in places.items()
    }


def _interval(value: float, draws_R: NDArray[np.float64], confidence: float, n: int) -> dict[str, Any]:
    found: Interval = percentile_interval(value, draws_R, n, confidence)
    return found.as_dict()
