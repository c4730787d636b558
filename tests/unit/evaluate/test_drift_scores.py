"""KL, distinct-n and the figures of sampled responses, with the arithmetic written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.evaluate.measure.drift_scores import (
    SampledResponse,
    compare_responses,
    distinct_n,
    divergence,
    read_responses,
    summarise_responses,
    write_responses,
)
from posttrain.evaluate.measure.statistics import bootstrap_sums, paired_bootstrap


def response(item: int, number: int = 0, **changed: Any) -> SampledResponse:
    fields: dict[str, Any] = {
        "id": f"item/{item}",
        "task": "count",
        "language": "en",
        "sample": number,
        "prompt": "How many?",
        "response": "one two",
        "tokens": 4,
        "ended": True,
        "correct": 1.0,
        "preference": None,
        "score": 1.0,
        "kl": 0.5,
        "k3": 0.1,
        "reference_logprob": -2.0,
    }
    return SampledResponse(**(fields | changed))


def test_divergence_by_hand() -> None:
    # The policy gives its two tokens ½ and ¼, the reference ¼ and ½: log ½/¼ + log ¼/½ = 0, but they do differ.
    kl, k3 = divergence(np.log([0.5, 0.25]), np.log([0.25, 0.5]))
    assert kl == pytest.approx(0)
    assert k3 == pytest.approx((0.5 - 1 - math.log(0.5)) + (2 - 1 - math.log(2)))
    assert divergence(np.log([0.5]), np.log([0.5])) == (0, 0)
    assert divergence(np.log([0.1]), np.log([0.3]))[0] == pytest.approx(-math.log(3))


def test_both_estimates_have_the_divergence_as_their_mean() -> None:
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    estimates = [divergence(np.log(policy[[t]]), np.log(reference[[t]])) for t in range(3)]
    exact = float((policy * np.log(policy / reference)).sum())
    assert [float(policy @ [one[n] for one in estimates]) for n in (0, 1)] == pytest.approx([exact, exact])


def test_distinct_n_by_hand() -> None:
    texts = ["a b a b", "b a", "c"]
    # Words a b a b b a c: three of seven. Pairs ab ba ab | ba: two of four; none crosses from one text to the next.
    assert distinct_n(texts, 1) == 3 / 7
    assert distinct_n(texts, 2) == 2 / 4
    assert distinct_n(["c", "", "d"], 2) is None


def test_figures_weigh_every_response_or_every_token_the_same() -> None:
    responses = [
        response(0, 0, score=1.0, tokens=2, kl=1.0, k3=0.5, reference_logprob=-3.0, response="a b"),
        response(0, 1, score=0.0, tokens=6, kl=-0.5, k3=0.7, reference_logprob=-9.0, response="a b", ended=False),
        response(1, 0, score=0.5, tokens=4, kl=2.5, k3=1.2, reference_logprob=-12.0, response="b a"),
    ]
    figures = summarise_responses(responses)
    expected = {
        "score": 1.5 / 3,
        "kl": 3.0 / 3,
        "kl_per_token": 3.0 / 12,
        "k3_per_token": 2.4 / 12,
        "reference_logprob_per_token": -24 / 12,
        "length": 12 / 3,
        "ended": 2 / 3,
        "correct": 1.0,
    }
    assert {name: figures[name]["value"] for name in expected} == pytest.approx(expected)
    assert (figures["items"], figures["responses"], figures["score"]["n"]) == (2, 3, 2)
    assert (figures["distinct_1"], figures["distinct_2"]) == (2 / 6, 2 / 3)


def test_samples_of_one_item_count_once_for_the_interval() -> None:
    """Eight equal samples of an item say no more than one does."""
    scores = [0.1, 0.9, 0.4, 0.6, 0.2, 0.8]
    one = summarise_responses([response(item, score=score) for item, score in enumerate(scores)])
    many = summarise_responses([response(i, n, score=score) for i, score in enumerate(scores) for n in range(8)])
    assert many["score"] == pytest.approx(one["score"])
    assert one["score"]["high"] - one["score"]["low"] > 0.3


def test_changes_are_paired_by_item() -> None:
    rng = np.random.default_rng(0)
    before = [response(i, n, score=rng.normal(i, 0.1)) for i in range(40) for n in range(2)]
    after = [one._replace(score=one.score + rng.normal(0.05, 0.02), tokens=5) for one in before[::-1]]
    found = compare_responses(before, after)
    assert found is not None
    means = [np.array([one.score for one in part]).reshape(40, 2).mean(1) for part in (before, after[::-1])]
    expected = paired_bootstrap(*means, resamples=2000)
    assert found["score"]["value"] == pytest.approx(expected.value)
    # The items' own spread, a hundred times the change, is gone; the two bootstraps differ by chance alone.
    assert (found["score"]["low"], found["score"]["high"]) == pytest.approx((expected.low, expected.high), abs=0.002)
    # −2 nats over five tokens instead of four.
    assert found["reference_logprob_per_token"]["value"] == pytest.approx(0.1)
    assert found["distinct_2"] == 0


def test_only_items_that_both_answered_are_compared() -> None:
    before = [response(0, score=0.0, response="a b c"), response(1, score=0.5, response="a b c")]
    after = [response(1, score=1.0, response="a b a b a"), response(2, score=0.0)]
    found = compare_responses(before, after)
    assert found is not None
    assert (found["items"], found["score"]["value"]) == (1, 0.5)
    assert found["distinct_2"] == pytest.approx((2 / 4) / (2 / 2) - 1)
    assert compare_responses(before[:1], after) is None


def test_resamples_of_as_many_groups_are_the_same_ones() -> None:
    values = np.arange(12.0).reshape(6, 2)
    sums = bootstrap_sums(values, 500, seed=3)
    assert sums.shape == (500, 2)
    np.testing.assert_allclose(bootstrap_sums(2 * values + 1, 500, seed=3), 2 * sums + 6)
    np.testing.assert_allclose(sums.mean(0), values.sum(0), rtol=0.05)


def test_responses_are_written_and_read_unchanged(tmp_path: Path) -> None:
    responses = [response(0), response(0, 1, preference=0.25, score=0.25, response="¿qué?")]
    write_responses(tmp_path, responses)
    assert read_responses(tmp_path) == responses
