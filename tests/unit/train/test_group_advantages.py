"""Advantages within groups against arithmetic written out, and what a rollout makes of them."""

import math

import numpy as np
import pytest
import torch

from posttrain.data.records import IGNORED
from posttrain.train.maths.group_advantages import (
    group_relative_advantages,
    groups_without_signal,
    leave_one_out_advantages,
)
from posttrain.train.methods.group_episodes import collate_groups, finish_groups
from posttrain.train.rollouts.episodes import Episode

REWARDS = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0], dtype=torch.float64)  # two groups of three


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    found = leave_one_out_advantages(REWARDS, 3)
    assert found.tolist() == pytest.approx([1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2, 0, 0, 0])


def test_normalised_leave_one_out_has_unit_variance_over_all_groups() -> None:
    found = leave_one_out_advantages(REWARDS, 3, normalize=True)
    deviation = math.sqrt((3**2 + 1.5**2 + 4.5**2) / 5)  # of -3, -1.5, 4.5, 0, 0, 0, whose mean is 0
    assert found.tolist() == pytest.approx([-3 / deviation, -1.5 / deviation, 4.5 / deviation, 0, 0, 0], rel=1e-3)


def test_group_relative_advantages_under_every_scale() -> None:
    centred = [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    of_group = math.sqrt((4 + 1 + 9) / 2)
    mean = 21 / 6
    of_all = math.sqrt(sum((reward - mean) ** 2 for reward in [1, 2, 6, 4, 4, 4]) / 5)
    assert group_relative_advantages(REWARDS, 3, "none").tolist() == pytest.approx(centred)
    by_group = group_relative_advantages(REWARDS, 3, "group").tolist()
    assert by_group == pytest.approx([value / (of_group + 1e-4) for value in centred])
    by_batch = group_relative_advantages(REWARDS, 3, "batch").tolist()
    assert by_batch == pytest.approx([value / (of_all + 1e-4) for value in centred])


def test_groups_of_one_reward_are_counted() -> None:
    assert groups_without_signal(REWARDS, 3) == 0.5
    assert groups_without_signal(REWARDS, 2) == pytest.approx(1 / 3)


def episode(place: int, prompt: int, logps: list[float], reference: list[float], score: float) -> Episode:
    return Episode(
        place=place,
        row=place // 2,
        prompt_ids=list(range(10, 10 + prompt)),
        response_ids=list(range(100, 100 + len(logps))),
        logps=np.array(logps, np.float32),
        ended=True,
        reference_logps=np.array(reference, np.float32),
        score=score,
    )


def two_groups() -> list[Episode]:
    return [
        episode(0, 3, [-1.0, -2.0], [-1.5, -2.0], 1.0),  # KL 0.5
        episode(1, 3, [-1.0], [-2.0], 2.0),  # KL 1
        episode(2, 1, [-3.0, -1.0, -1.0], [-1.0, -1.0, -1.0], 0.0),  # KL -2
        episode(3, 1, [-1.0], [-1.0], 0.0),
    ]


def test_a_reward_is_the_score_less_the_kl_of_the_whole_response() -> None:
    episodes = two_groups()
    metrics = finish_groups(episodes, 2, lambda rewards: leave_one_out_advantages(rewards, 2), 0.1)
    rewards = [1 - 0.05, 2 - 0.1, 0.2, 0.0]
    wanted = [rewards[0] - rewards[1], rewards[1] - rewards[0], 0.2, -0.2]
    for made, advantage in zip(episodes, wanted, strict=True):
        assert made.advantages.tolist() == pytest.approx([advantage] * len(made.response_ids))
    assert metrics["objective/rlhf_reward"] == pytest.approx(sum(rewards) / 4)
    assert metrics["objective/scores"] == pytest.approx(0.75)
    assert metrics["objective/kl"] == pytest.approx((0.5 + 1 - 2) / 4)
    assert metrics["objective/entropy"] == pytest.approx((1 + 2 + 1 + 3 + 1 + 1 + 1) / 7)
    assert metrics["objective/groups_without_signal"] == 0


def test_a_micro_batch_has_log_probabilities_where_tokens_are_predicted() -> None:
    episodes = two_groups()
    finish_groups(episodes, 2, lambda rewards: rewards, 0.0)
    batch = collate_groups(episodes[1:3], pad_token_id=0, step_tokens=4, rollout_tokens=7, with_mask=True)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 100], [10, 100, 101, 102]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, IGNORED, 100], [IGNORED, 100, 101, 102]]
    assert batch["attention_mask"].tolist() == [[1] * 4, [1] * 4]
    assert batch["old_logps"].tolist() == [[0, 0, -1], [-3, -1, -1]]
    assert batch["reference_logps"].tolist() == [[0, 0, -2], [-1, -1, -1]]
    assert batch["advantages"].tolist() == [2, 0]
    assert [float(batch[name]) for name in ("num_tokens", "step_tokens", "rollout_tokens")] == [8, 4, 7]
    shorter = collate_groups(episodes[2:], pad_token_id=9, step_tokens=4, rollout_tokens=7, with_mask=True)
    assert shorter["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert shorter["input_ids"][1].tolist() == [10, 100, 9, 9]
