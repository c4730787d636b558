"""PPO's losses against arithmetic written out, token by token."""

import math

import pytest
import torch

from posttrain.train.config.ppo import KlConfig
from posttrain.train.maths.policy_losses import (
    KlEstimator,
    clipped_policy_loss,
    clipped_value_loss,
    importance_weights,
    kl_estimates,
)
from posttrain.train.methods.ppo_trainer import adapted_kl_coef


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Ratio, advantage, the loss at ε = 0.2, whether clipping decided it.
POLICY = [
    (1.0, 2.0, -2.0, False),
    (1.1, 2.0, -2.2, False),  # within the range
    (1.5, 2.0, -2.4, True),  # gains no more than 1.2 × 2
    (0.5, 2.0, -1.0, False),  # a good token made rarer: all of it counts
    (0.5, -2.0, 1.6, True),  # a bad token made rarer: no more than 0.8
    (1.5, -2.0, 3.0, False),  # a bad token made likelier: all of it counts
    (4.0, -2.0, 8.0, False),
]


def test_clipped_policy_loss_of_every_case() -> None:
    ratios, advantages, losses, decided = zip(*POLICY, strict=True)
    old = tensor([-0.7] * len(POLICY))
    found, clipped = clipped_policy_loss(old + tensor(list(ratios)).log(), old, tensor(list(advantages)), 0.2)
    assert found.tolist() == pytest.approx(losses)
    assert clipped.tolist() == list(decided)


def test_dual_clip_bounds_what_a_bad_token_may_cost() -> None:
    ratios, advantages, losses, decided = zip(*POLICY, strict=True)
    old = tensor([-0.7] * len(POLICY))
    found, clipped = clipped_policy_loss(old + tensor(list(ratios)).log(), old, tensor(list(advantages)), 0.2, 3.0)
    assert found.tolist() == pytest.approx([*losses[:-1], 6.0])  # 3 × 2 instead of 4 × 2
    assert clipped.tolist() == [*decided[:-1], True]


def test_tokens_that_clipping_decided_have_no_gradient() -> None:
    ratios, advantages, _, decided = zip(*POLICY, strict=True)
    logps = tensor(list(ratios)).log().requires_grad_()
    loss, _ = clipped_policy_loss(logps, torch.zeros_like(logps), tensor(list(advantages)), 0.2)
    loss.sum().backward()
    expected = [0.0 if cut else -ratio * a for ratio, a, cut in zip(ratios, advantages, decided, strict=True)]
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx(expected)


def test_clipped_value_loss_takes_the_worse_of_both() -> None:
    values, old, returns = tensor([1.0, 1.5, 1.5, 0.2]), tensor([1.0, 1.0, 1.0, 1.0]), tensor([2.0, 2.0, 0.0, 0.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    # 1.5 is cut to 1.2 and 0.2 to 0.8; that is worse for the second, whose way to 2.0 is cut off, and for the last
    assert loss.tolist() == pytest.approx([0.5, 0.5 * 0.8**2, 0.5 * 1.5**2, 0.5 * 0.8**2])
    assert clipped.tolist() == [False, True, False, True]
    plain, none = clipped_value_loss(values, old, returns, None)
    assert plain.tolist() == pytest.approx([0.5, 0.125, 1.125, 0.02])
    assert not none.any()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 1 + 0.5)],
)
def test_kl_estimates_by_hand(estimator: KlEstimator, expected: float) -> None:
    policy, reference = tensor([-1.0, -2.0]), tensor([-1.5, -2.0])  # log π / π_ref is 0.5 and 0
    assert kl_estimates(policy, reference, estimator).tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimates_have_the_divergence_for_their_mean(estimator: KlEstimator) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    policy, reference = logits.log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    mean = (policy.exp() * kl_estimates(policy, reference, estimator)).sum()  # over all tokens, by their probability
    assert float(mean) == pytest.approx(float(exact), abs=1e-12)


def test_k2_has_the_gradient_of_the_divergence_and_k3_never_is_negative() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    own = logits[0].clone().requires_grad_()
    policy, reference = own.log_softmax(-1), logits[1].log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), own, retain_graph=True)
    weights = policy.detach().exp()
    (ours,) = torch.autograd.grad((weights * kl_estimates(policy, reference, "k2")).sum(), own)
    torch.testing.assert_close(ours, exact)
    assert (kl_estimates(policy.detach(), reference, "k3") >= 0).all()


def test_the_coefficient_follows_the_target_by_no_more_than_a_fifth_of_the_horizon_share() -> None:
    config = KlConfig(target=6.0, horizon=1000)
    assert adapted_kl_coef(0.1, 6.6, 100, config) == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000))
    assert adapted_kl_coef(0.1, 60.0, 100, config) == pytest.approx(0.1 * (1 + 0.2 * 100 / 1000))
    assert adapted_kl_coef(0.1, 0.0, 100, config) == pytest.approx(0.1 * (1 - 0.2 * 100 / 1000))
    assert adapted_kl_coef(0.1, 60.0, 100, KlConfig()) == 0.1


def test_importance_weights_are_capped_ratios() -> None:
    logps = torch.tensor([-1.0, -1.0, -1.0])
    sampler = torch.tensor([-1.0, -1.0 + math.log(2.0), -1.0 - math.log(5.0)])
    assert importance_weights(logps, sampler, cap=2.0).tolist() == pytest.approx([1.0, 0.5, 2.0])
