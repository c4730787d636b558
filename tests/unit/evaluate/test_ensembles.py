"""Figures of several reward models, on samples and pairs whose gold is known."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.evaluate.measure.ensembles import ensemble_figures, summarise_members
from posttrain.evaluate.measure.pair_scores import ScoredGroup
from posttrain.evaluate.measure.selection import SampledItem


def items(number: int, samples: int = 8) -> list[SampledItem]:
    """Return items on which each of three models adores one sample, each another one, that is worst of all."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(number):
        gold = rng.normal(size=samples)
        gold[:3] = -3.0
        rewards = gold + rng.normal(scale=0.2, size=(3, samples))
        np.fill_diagonal(rewards, 9.0)
        found.append(
            SampledItem(
                id=f"item/{index}",
                task="t",
                language="en",
                prompt_tokens=1,
                responses=["a"] * samples,
                texts=["a"] * samples,
                answers=["a"] * samples,
                tokens=[1] * samples,
                reasoning_tokens=[0] * samples,
                ended=[True] * samples,
                logprobs=[0.0] * samples,
                rewards=rewards.min(axis=0).tolist(),
                correct=[1.0] * samples,
                preference=gold.tolist(),
                member_rewards=rewards.tolist(),
            )
        )
    return found


def test_one_model_is_fooled_by_its_own_taste_and_the_worst_of_all_is_not() -> None:
    found = ensemble_figures(items(40), 0.5, 200, 0.95, 0)
    assert found is not None and (found["models"], found["items"]) == (3, 40)
    gold, proxy, sizes = found["gold"], found["proxy"], [1, 2, 4, 8]
    assert [point["k"] for point in gold["single"]] == sizes
    assert all(points[0]["value"] == 0 for points in (*gold.values(), *proxy.values()))
    # With all eight samples each model takes the one that it adores, which is worth −3.
    assert gold["single"][-1]["high"] < 0 < proxy["single"][-1]["low"]
    assert gold["worst"][-1]["low"] > 0.5
    over = found["over_single"]["worst"][-1]
    assert over["value"] == pytest.approx(gold["worst"][-1]["value"] - gold["single"][-1]["value"])
    assert over["low"] > 1
    spread = [point["value"] for point in found["disagreement"]]
    assert spread[-1] > 2 * spread[0]


def test_one_model_alone_or_no_truth_is_no_ensemble() -> None:
    one = [SampledItem(**{**vars(item), "member_rewards": item.member_rewards[:1]}) for item in items(2)]
    assert ensemble_figures(one, 0.5, 100, 0.95, 0) is None
    assert (
        ensemble_figures([SampledItem(**{**vars(i), "preference": None}) for i in items(2)], 0.5, 100, 0.95, 0) is None
    )


def test_members_are_judged_on_the_pairs_of_their_groups() -> None:
    groups = [
        ScoredGroup("a", "s", "t", "en", [1, 2], [0.0, 0.0], [1, 1]),
        ScoredGroup("b", "s", "t", "en", [2, 1, 1], [0.0, 0.0, 0.0], [1, 1, 1]),
    ]
    rewards = np.array([[1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 3.0, 1.0]])
    found = summarise_members(groups, rewards, ["first", "second"], 0.5, 0.95)
    # Pairs: a0 over a1, b1 over b0, b2 over b0. The first model has all right, the second loses a.
    assert [found["models"][name]["value"] for name in ("first", "second")] == pytest.approx([1, 2 / 3])
    values = {way: figure["value"] for way, figure in found["accuracy"].items()}
    assert values == pytest.approx({"single": 5 / 6, "mean": 2.5 / 3, "worst": 2.5 / 3, "uncertainty": 2.5 / 3})
    assert found["disagreement"] == pytest.approx((0.5 + 0.5 + 0 + 1 + 0) / 5)
    # Both say 1 and 1 of b2 over b0, 1 and 3 of b1 over b0, 1 and −1 of a: a tie for the mean.
    assert [part["value"] for part in found["agreement"]] in ([1, 0.5, 1], [1, 1, 0.5])
