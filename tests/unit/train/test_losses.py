"""The pairwise loss against arithmetic written out, and against one pair at a time."""

import math

import numpy as np
import pytest
import torch

from posttrain.train.maths.ranking_loss import pairwise_ranking_loss
from posttrain.train.rows.collate import collate_ranked_groups


def group(row: int, ranks: list[int]) -> dict[str, object]:
    responses = [np.array([4 + i, 2]) for i in range(len(ranks))]
    return {"row": row, "prompt_ids": np.array([7, 8]), "responses_ids": responses, "ranks": np.array(ranks)}


def loss_of(rows: list[dict[str, object]], rewards: list[float], margin: float = 0.0, centering: float = 0.0) -> float:
    batch = collate_ranked_groups(rows, pad_token_id=0)
    value = pairwise_ranking_loss(
        torch.tensor(rewards, dtype=torch.float64),
        batch["better"],
        batch["worse"],
        batch["weight"].double(),
        batch["rank_gap"].double(),
        batch["num_groups"],
        margin,
        centering,
    )
    return float(value)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_all_pairs_of_a_group_each_weighted_by_the_number_of_pairs() -> None:
    # ranks 2, 1, 3: pairs (better, worse) are (1,0), (0,2), (1,2); K = 3 gives 3 pairs of weight 1/3
    expected = -(log_sigmoid(2.0 - 0.5) + log_sigmoid(0.5 + 1.0) + log_sigmoid(2.0 + 1.0)) / 3
    assert loss_of([group(0, [2, 1, 3])], [0.5, 2.0, -1.0]) == pytest.approx(expected, rel=1e-6)


def test_ties_make_no_pair_and_keep_the_weight_of_the_others() -> None:
    # ranks 1, 1, 2: two untied pairs, each still 1 / C(3, 2)
    expected = -(log_sigmoid(0.3 + 0.2) + log_sigmoid(0.1 + 0.2)) / 3
    assert loss_of([group(0, [1, 1, 2])], [0.3, 0.1, -0.2]) == pytest.approx(expected, rel=1e-6)


def test_groups_are_averaged_whatever_their_size() -> None:
    pair, triple = group(0, [1, 2]), group(1, [1, 2, 3])
    alone = loss_of([pair], [1.0, 0.0]) + loss_of([triple], [0.4, 0.2, 0.9])
    assert loss_of([pair, triple], [1.0, 0.0, 0.4, 0.2, 0.9]) == pytest.approx(alone / 2, rel=1e-6)


def test_margin_grows_with_the_rank_gap_and_centering_pulls_pairs_to_zero() -> None:
    rewards = [1.5, 0.5]
    assert loss_of([group(0, [1, 3])], rewards, margin=0.25) == pytest.approx(-log_sigmoid(1.0 - 0.5), rel=1e-6)
    expected = -log_sigmoid(1.0) + 0.1 * (1.5 + 0.5) ** 2
    assert loss_of([group(0, [1, 2])], rewards, centering=0.1) == pytest.approx(expected, rel=1e-6)


def test_every_response_is_read_once_with_its_prompt() -> None:
    batch = collate_ranked_groups([group(0, [1, 2, 3]), group(5, [2, 1])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[7, 8, 4, 2], [7, 8, 5, 2], [7, 8, 6, 2], [7, 8, 4, 2], [7, 8, 5, 2]]
    assert list(zip(batch["better"].tolist(), batch["worse"].tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (4, 3)]
    assert batch["weight"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert batch["row"].tolist() == [0, 5]
