"""Advantages against the textbook's backward recursion, and whitening against numpy."""

import numpy as np
import pytest
import torch

from posttrain.train.maths.advantages import generalised_advantages, whiten

# Lengths around the block of 128 positions that one product covers.
LENGTHS = [1, 2, 127, 128, 129, 300]


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (len(LENGTHS), max(LENGTHS))
    rewards, values = (torch.randn(size, generator=generator, dtype=dtype) for _ in range(2))
    return rewards, values, torch.arange(size[1]) < torch.tensor(LENGTHS)[:, None]


def textbook(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Go back from the last token: A_t = r_t + γ V_{t+1} − V_t + γ λ A_{t+1}."""
    advantages, ahead, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        ahead = reward + gamma * next_value - value + gamma * lam * ahead
        next_value = value
        advantages.append(ahead)
    return advantages[::-1]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_are_those_of_the_backward_recursion(gamma: float, lam: float) -> None:
    rewards, values, mask = batch()
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        expected = textbook(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-11)
        value_and_advantage = [v + a for v, a in zip(values[row].tolist(), expected, strict=False)]
        assert returns[row, :length].tolist() == pytest.approx(value_and_advantage, abs=1e-11)


def test_single_precision_stays_close_over_many_blocks() -> None:
    double = generalised_advantages(*batch(), gamma=1.0, lam=0.95)
    rewards, values, mask = batch()
    single = generalised_advantages(rewards.float(), values.float(), mask, 1.0, 0.95)
    assert single[0].dtype == torch.float32
    torch.testing.assert_close(single[0].double(), double[0], atol=2e-5, rtol=0)


def test_three_tokens_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, -0.1, 1.0]]), torch.tensor([[0.5, 0.2, 0.4]])
    advantages, returns = generalised_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.5)
    last = 1.0 - 0.4
    middle = -0.1 + 0.9 * 0.4 - 0.2 + 0.45 * last
    first = 0.9 * 0.2 - 0.5 + 0.45 * middle
    assert advantages[0].tolist() == pytest.approx([first, middle, last])
    assert returns[0].tolist() == pytest.approx([first + 0.5, middle + 0.2, 1.0])


def test_what_lies_outside_the_mask_has_no_influence_and_gets_nothing() -> None:
    rewards, values, mask = batch()
    advantages, returns = generalised_advantages(rewards, values, mask, 1.0, 0.95)
    noisy_rewards, noisy_values = (torch.where(mask, tensor, 1e6) for tensor in (rewards, values))
    again, returns_again = generalised_advantages(noisy_rewards, noisy_values, mask, 1.0, 0.95)
    assert torch.equal(advantages, again) and torch.equal(returns, returns_again)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_whitened_values_have_the_moments_of_the_masked_places() -> None:
    values, _, mask = batch()
    values = torch.where(mask, values * 3 + 7, 1e9)
    chosen = values[mask].numpy()
    expected = (chosen - chosen.mean()) / np.sqrt(chosen.var() + 1e-8)
    np.testing.assert_allclose(whiten(values, mask)[mask].numpy(), expected, atol=1e-12)
    kept = whiten(values, mask, shift_mean=False)
    np.testing.assert_allclose(kept[mask].numpy(), expected + chosen.mean(), atol=1e-12)
    assert not kept[~mask].any()


def test_values_that_are_all_the_same_whiten_to_zero() -> None:
    assert whiten(torch.full((2, 3), 0.3), torch.ones(2, 3)).abs().max() < 1e-6
