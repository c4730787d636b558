"""The loss of unpaired preferences against TRL's on the same log-probabilities, and against arithmetic."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from accelerate import Accelerator
from torch import Tensor

from posttrain.stage.errors import UsageError
from posttrain.train.kto import imbalance, require_mismatches
from posttrain.train.maths.unpaired_loss import reference_point, unpaired_loss, weight_ratio

OWN, OTHER = 1, 2
"""Tokens by which the model below tells rows from their mismatched ones."""


class Told(torch.nn.Module):
    """A model whose log-probabilities of both kinds of responses are given."""

    def __init__(self, logps_BT: Tensor, mismatched_BT: Tensor) -> None:
        super().__init__()
        self.logps_BT, self.mismatched_BT = torch.nn.Parameter(logps_BT), mismatched_BT

    def forward(self, input_ids: Tensor, **ignored: Any) -> Any:
        logps_BT = self.logps_BT if input_ids[0, 0] == OWN else self.mismatched_BT
        nothing_BT = torch.zeros_like(logps_BT)
        return SimpleNamespace(log_probs=logps_BT, entropy=nothing_BT, mean_logits=nothing_BT)


def trls_loss(model: Told, batch: dict[str, Tensor], beta: float, weights: tuple[float, float]) -> tuple[Tensor, float]:
    """Return the loss and the reference point that TRL's trainer finds for a batch."""
    trainer = object.__new__(trl.KTOTrainer)
    trainer.__dict__.update(
        model=model,
        accelerator=Accelerator(cpu=True),
        precompute_ref_logps=True,
        calculate_KL=True,
        aux_loss_enabled=False,
        loss_type="kto",
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    return trainer._compute_loss(model, batch, False), trainer._metrics["train"]["kl"][0]


@pytest.mark.parametrize("labels", [[1, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("shift", [0.5, -0.5])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_values_and_gradients_are_those_of_trl(labels: list[int], shift: float, beta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logps_BT, mismatched_BT = (-3 * torch.rand(5, 6, generator=generator) for _ in range(2))
    model = Told(logps_BT.clone(), mismatched_BT)
    ids_BT = torch.full((5, 7), OWN)
    batch = {
        "input_ids": ids_BT,
        "KL_input_ids": torch.full((5, 7), OTHER),
        **{name: torch.ones_like(ids_BT) for name in ("attention_mask", "completion_mask")},
        **{f"KL_{name}": torch.ones_like(ids_BT) for name in ("attention_mask", "completion_mask")},
        "label": torch.tensor(labels).bool(),
        "ref_logps": logps_BT.sum(-1) + torch.randn(5, generator=generator),
        "ref_KL_logps": mismatched_BT.sum(-1) - shift + torch.randn(5, generator=generator) / 4,
    }
    expected, point = trls_loss(model, batch, beta, (1.3, 0.6))
    expected.backward()
    assert (point > 0) == (shift > 0)

    own_BT = logps_BT.clone().requires_grad_()
    ratios_B = own_BT.sum(-1) - batch["ref_logps"]
    found = unpaired_loss(ratios_B, batch["label"], point, beta, 1.3, 0.6).mean()
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own_BT.grad, model.logps_BT.grad)


def test_the_loss_is_the_papers() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    found = unpaired_loss(torch.tensor([0.8, -0.4]), torch.tensor([True, False]), 0.3, 0.5, 2.0, 0.5)
    expected = [2.0 * (1 - sigmoid(0.5 * (0.8 - 0.3))), 0.5 * (1 - sigmoid(0.5 * (0.3 + 0.4)))]
    assert found.tolist() == pytest.approx(expected)


def test_the_reference_point_is_a_mean_that_is_never_negative() -> None:
    total, count = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert reference_point(total, count).tolist() == 0.75
    assert reference_point(-total, count).tolist() == 0.0


def test_large_ratios_lose_no_gradient_to_rounding() -> None:
    """1 - σ(20) is 2e-9 in float32 only where it is not taken as a difference."""
    ratios_B = torch.tensor([200.0], requires_grad=True)
    unpaired_loss(ratios_B, torch.tensor([True]), 0.0, 0.1, 1.0, 1.0).sum().backward()
    assert ratios_B.grad is not None
    assert float(ratios_B.grad) == pytest.approx(-0.1 * math.exp(-20), rel=1e-4)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "warned"),
    [
        (30, 30, (1.0, 1.0), False),
        (40, 30, (1.0, 1.0), False),
        (41, 30, (1.0, 1.0), True),
        (30, 40, (1.0, 1.0), True),
        (30, 40, (1.5, 1.0), False),
        (300, 30, (0.1, 1.0), False),
    ],
)
def test_labels_out_of_balance_are_warned_about(
    desirable: int, undesirable: int, weights: tuple[float, float], warned: bool
) -> None:
    assert bool(imbalance(desirable, undesirable, *weights)) == warned


def test_the_weights_that_a_warning_advises_are_in_balance() -> None:
    warning = imbalance(30, 90, 1.0, 1.0)
    low, high, other_low, other_high = map(float, re.findall(r"(?:between|and) ([\d.]+)", warning)[-4:])
    assert (weight_ratio(30, 90, low, 1.0), weight_ratio(30, 90, high, 1.0)) == pytest.approx((1, 4 / 3))
    assert (weight_ratio(30, 90, 1.0, other_high), weight_ratio(30, 90, 1.0, other_low)) == pytest.approx(
        (1, 4 / 3), rel=1e-2
    )


def test_labels_of_one_kind_are_warned_about() -> None:
    assert imbalance(3, 0, 1.0, 1.0).startswith("all 3 training rows are desirable")
    assert imbalance(0, 3, 1.0, 1.0).startswith("all 3 training rows are undesirable")


def test_a_reference_point_that_would_be_the_rows_own_reward_is_refused() -> None:
    with pytest.raises(UsageError, match="all training rows have one prompt"):
        require_mismatches([[1, 2], [1, 2]], 8)
    with pytest.raises(UsageError, match="global_batch_size=1"):
        require_mismatches([[1, 2], [1, 3]], 1)
    require_mismatches([[1, 2], [1, 3]], 2)
