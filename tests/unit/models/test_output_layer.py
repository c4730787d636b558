"""Scores of tokens in tiles against log_softmax and autograd in float64, with all that families and adapters add."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from posttrain.models.cpu import logit_tiles
from posttrain.models.cpu.logit_tiles import OutputLayer
from posttrain.models.cpu.output_layer import score_tokens

N, V, E = 37, 53, 8
OWN = (4, 31, 52)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 37 × 53 logits three blocks of six tiles, of which the store holds a part."""
    monkeypatch.setattr(logit_tiles, "ROWS", 15)
    monkeypatch.setattr(logit_tiles, "NARROWEST", 1)
    monkeypatch.setattr(logit_tiles, "TILE", 150)
    monkeypatch.setattr(logit_tiles, "STORE", 1000)
    monkeypatch.setattr(logit_tiles, "_FREE", [])


def parts(dtype: torch.dtype = torch.float64, bias: bool = False, own: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    made = {"states": 2 * torch.randn(N, E, dtype=torch.float64), "weight": torch.randn(V, E, dtype=torch.float64)}
    if bias:
        made["bias"] = torch.randn(V, dtype=torch.float64)
    if own:
        made["own_rows"] = torch.randn(len(OWN), E, dtype=torch.float64)
    return {name: part.to(dtype).requires_grad_() for name, part in made.items()}


def layer_of(made: dict[str, Tensor], **more: Any) -> OutputLayer:
    tensors = {name: part for name, part in made.items() if name != "states"}
    return OutputLayer(**tensors, own_tokens=OWN if "own_rows" in made else (), **more)


def targets() -> Tensor:
    return torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))


def written_out(made: dict[str, Tensor], scale: float, cap: float | None, temperature: float) -> list[Tensor]:
    """Return log-probabilities, entropies and mean logits."""
    matrix = made["weight"]
    if "own_rows" in made:
        matrix = matrix.index_copy(0, torch.tensor(OWN), made["own_rows"])
    logits = functional.linear(made["states"], matrix, made.get("bias")) * scale
    logits = (logits if cap is None else torch.tanh(logits / cap) * cap) / temperature
    log_probs = logits.log_softmax(-1)
    return [log_probs[torch.arange(N), targets()], -(log_probs.exp() * log_probs).sum(-1), logits.mean(-1).detach()]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("bias", "own"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_values_and_gradients(
    dtype: torch.dtype, cap: float | None, bias: bool, own: bool, entropy_weight: float
) -> None:
    made = parts(dtype, bias, own)
    exact = {name: part.detach().double().requires_grad_() for name, part in made.items()}
    found = score_tokens(layer_of(made, scale=1.3, cap=cap, temperature=0.7), made["states"], targets(), True, True)
    expected = written_out(exact, 1.3, cap, 0.7)
    values = [found.log_probs, found.entropy, found.mean_logits]
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    for logps, entropies, _ in (values, expected):
        (weights * logps + entropy_weight * weights.flip(0) * entropies).sum().backward()
    gradients = [(part.grad, exact[name].grad) for name, part in made.items()]
    for one, other in [*zip(values, expected, strict=True), *gradients]:
        assert one is not None and other is not None
        assert ((one.double() - other).norm() / other.norm()).item() < TOLERANCE[dtype]
    assert values[0].dtype == torch.promote_types(dtype, torch.float32)
    assert made["weight"].grad is not None and made["weight"].grad.dtype == dtype


def test_micro_batches_add_up_in_one_buffer() -> None:
    made = parts()
    layer, loss = layer_of(made), torch.linspace(-1, 2, N, dtype=torch.float64)
    (score_tokens(layer, made["states"], targets()).log_probs * loss).sum().backward()
    kept = made["weight"].grad
    assert kept is not None
    once, place = kept.clone(), kept.data_ptr()
    for _ in range(2):
        (score_tokens(layer, made["states"], targets()).log_probs * loss).sum().backward()
    assert made["weight"].grad is kept and kept.data_ptr() == place
    torch.testing.assert_close(kept, 3 * once, atol=1e-12, rtol=1e-12)


def test_passes_that_overlap_do_not_share_what_is_kept() -> None:
    """The second forward pass comes before the first backward pass, and a graph is run through twice."""
    made = parts()
    layer = layer_of(made)
    alone = []
    for factor in (1.0, -0.5):
        states = (made["states"].detach() * factor).requires_grad_()
        score_tokens(layer, states, targets()).log_probs.sum().backward()
        alone.append(states.grad)
    both = [(made["states"].detach() * factor).requires_grad_() for factor in (1.0, -0.5)]
    found = [score_tokens(layer, states, targets()).log_probs.sum() for states in both]
    for scores in found:
        scores.backward(retain_graph=True)
    for states, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(states.grad, expected, atol=1e-12, rtol=1e-12)
    score_tokens(layer, both[0] + 1, targets())  # may be where the last one kept its logits
    found[1].backward()
    torch.testing.assert_close(both[1].grad, 2 * alone[1], atol=1e-12, rtol=1e-12)


def test_bits_do_not_depend_on_the_memory_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on from a checkpoint starts without a store; one that did not stop has a larger one."""
    gradients = []
    for before in ([], [torch.empty(4 * N * V)], [torch.empty(100)]):
        monkeypatch.setattr(logit_tiles, "_FREE", list(before))
        made = parts(torch.float32)
        score_tokens(layer_of(made), made["states"], targets()).log_probs.sum().backward()
        gradients.append((made["states"].grad, made["weight"].grad))
    for other in gradients[1:]:
        for one, expected in zip(other, gradients[0], strict=True):
            assert one is not None and expected is not None and torch.equal(one, expected)


def test_what_is_frozen_gets_no_gradient_and_what_needs_none_keeps_nothing() -> None:
    made = parts(own=True)
    made["weight"].requires_grad_(False)
    score_tokens(layer_of(made), made["states"], targets()).log_probs.sum().backward()
    assert made["weight"].grad is None and made["own_rows"].grad is not None and made["states"].grad is not None
    free = torch.empty(2 * N * V, dtype=torch.float64)
    logit_tiles.give_back(free)
    with torch.no_grad():
        scores = score_tokens(layer_of(made), made["states"], targets())
    assert scores.log_probs.grad_fn is None
    frozen = {name: part.detach() for name, part in made.items()}
    assert score_tokens(layer_of(frozen), frozen["states"], targets()).log_probs.grad_fn is None
    assert logit_tiles.store_for(1, V, torch.float64) is free


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_token_is_the_first_of_equals(dtype: torch.dtype) -> None:
    """Logits of small whole numbers, so that most rows have several highest ones, in one tile or in two."""
    torch.manual_seed(0)
    weight = torch.randint(-1, 2, (V, E)).to(dtype)
    states = torch.randint(-1, 2, (200, E)).to(dtype)
    logits = states @ weight.t()
    likeliest = logits.float().argmax(-1)
    assert ((logits == logits.amax(-1, keepdim=True)).sum(-1) > 1).float().mean() > 0.5
    also = (logits == logits.amax(-1, keepdim=True)).float().cumsum(-1).argmax(-1)  # the last of equals
    for chosen in (likeliest, also, torch.randint(0, V, (200,))):
        found = score_tokens(OutputLayer(weight), states, chosen).is_top1
        assert torch.equal(found, chosen == likeliest)


def test_no_tokens_are_scored_without_a_fault() -> None:
    made = parts(bias=True)
    none = made["states"][:0]
    found = score_tokens(layer_of(made), none, targets()[:0])
    assert found.log_probs.shape == found.is_top1.shape == (0,)
    found.log_probs.sum().backward()
    assert made["weight"].grad is not None and not made["weight"].grad.any()
    assert made["states"].grad is not None and not made["states"].grad.any()


def test_large_logits_neither_overflow_nor_vanish() -> None:
    states = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.linspace(-1, 1, V)[:, None].clone().requires_grad_()
    found = score_tokens(OutputLayer(weight), states, torch.tensor([V - 1, V - 1]))
    expected = (states.detach().double() @ weight.detach().double().t()).log_softmax(-1)[:, -1]
    torch.testing.assert_close(found.log_probs.double(), expected, atol=1e-4, rtol=1e-6)
    found.log_probs.sum().backward()
    assert states.grad is not None and bool(torch.isfinite(states.grad).all())
