"""Several reward models as one: what each way makes of scores that are written out, and which inputs are members."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.sample.choose.ensemble import combined, disagreement
from posttrain.sample.score import members

REWARDS = [[1.0, 0.0, 3.0], [3.0, 0.0, -1.0]]
"""Of two models for three responses."""


def test_each_way_by_hand() -> None:
    assert combined(REWARDS, "mean").tolist() == [2.0, 0.0, 1.0]
    assert combined(REWARDS, "worst").tolist() == [1.0, 0.0, -1.0]
    # mean − ½ · variance: the variances are 1, 0 and 4
    assert combined(REWARDS, "uncertainty", 0.5).tolist() == [1.5, 0.0, -1.0]
    assert disagreement(REWARDS).tolist() == [1.0, 0.0, 2.0]


def test_without_a_penalty_uncertainty_is_the_mean() -> None:
    assert combined(REWARDS, "uncertainty", 0.0).tolist() == combined(REWARDS, "mean").tolist()


@pytest.mark.parametrize("rewards", [[], [1.0, 2.0]])
def test_rewards_without_a_row_for_each_model_are_refused(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="give a row of rewards for each model"):
        combined(rewards, "mean")


def test_members_are_the_input_and_those_that_are_called_by_it() -> None:
    inputs = {
        "reward_2": Path("b"),
        "rewards": Path("x"),
        "reward": Path("a"),
        "model": Path("m"),
        "reward_x": Path("c"),
    }
    assert members(inputs, "reward") == [Path("a"), Path("b"), Path("c")]
    assert members(inputs, "reward_model") == []
