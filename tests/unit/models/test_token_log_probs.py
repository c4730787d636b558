"""Log-probabilities, entropies and their gradients against log_softmax and autograd in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Gemma2Config, LlamaConfig, LlamaForCausalLM

from posttrain.models import token_log_probs
from posttrain.models.cpu import logit_tiles
from posttrain.models.token_log_probs import head_log_probs, response_log_probs

N, V, H = 37, 53, 8


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 37 rows of logits parts of 15, 15 and 7 rows, worked on 4 rows, or 10 tokens of the vocabulary, at a time.

    Not all of them are kept for the backward pass.
    """
    monkeypatch.setattr(token_log_probs, "_ROWS", 15)
    monkeypatch.setattr(token_log_probs, "_BLOCK", 4 * V)
    monkeypatch.setattr(logit_tiles, "ROWS", 15)
    monkeypatch.setattr(logit_tiles, "NARROWEST", 1)
    monkeypatch.setattr(logit_tiles, "TILE", 15 * 10)
    monkeypatch.setattr(logit_tiles, "STORE", 15 * V + 300)


class Model:
    """All that is asked of a model here is its configuration."""

    def __init__(self, config: LlamaConfig | Gemma2Config) -> None:
        self.config = config


LLAMA = Model(LlamaConfig())
CAPPED = Model(Gemma2Config(final_logit_softcapping=2.0))


def case(dtype: torch.dtype = torch.float64, called: bool = False) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return an output layer, states and targets; a layer that must be ``called`` has a hook."""
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=False, dtype=torch.float64)
    if called:
        head.register_forward_hook(lambda *_: None)
    hidden = torch.randn(N, H, dtype=torch.float64) * 2
    targets = torch.randint(0, V, (N,))
    return head.to(dtype), hidden.to(dtype).requires_grad_(), targets


def naive(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = logits.log_softmax(-1)
    return log_probs[torch.arange(len(targets)), targets], -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
@pytest.mark.parametrize("called", [False, True])
def test_values_and_gradients(temperature: float, entropy_weight: float, called: bool) -> None:
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    gradients = []
    values = []
    for ours in (True, False):
        head, hidden, targets = case(called=called)
        if ours:
            logps, entropies = head_log_probs(LLAMA, head, hidden, targets, temperature)
        else:
            logps, entropies = naive(head(hidden) / temperature, targets)
        loss = (weights * logps).sum()
        if entropy_weight:
            loss = loss + entropy_weight * (weights.flip(0) * entropies).sum()
        loss.backward()
        values.append((logps.detach(), entropies.detach()))
        gradients.append((hidden.grad, head.weight.grad))
    for found, expected in zip([*values[0], *gradients[0]], [*values[1], *gradients[1]], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("called", [False, True])
def test_entropy_alone_has_its_gradient(called: bool) -> None:
    gradients = []
    for ours in (True, False):
        head, hidden, targets = case(called=called)
        _, entropies = head_log_probs(LLAMA, head, hidden, targets) if ours else naive(head(hidden), targets)
        entropies.sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("called", [False, True])
def test_capped_logits_are_capped_before_the_temperature(called: bool) -> None:
    gradients = []
    for ours in (True, False):
        head, hidden, targets = case(called=called)
        if ours:
            logps, _ = head_log_probs(CAPPED, head, hidden, targets, 0.5)
        else:
            logps, _ = naive(2.0 * torch.tanh(head(hidden) / 2.0) / 0.5, targets)
        logps.sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=1e-10)


def test_a_certain_token_has_no_entropy_and_no_nan() -> None:
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [500.0], [-500.0]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    logps, entropies = head_log_probs(LLAMA, head, hidden, torch.tensor([1]))
    (logps + entropies).sum().backward()
    assert logps.item() == 0.0 and entropies.item() == 0.0
    assert hidden.grad is not None and hidden.grad.item() == 0.0


@pytest.mark.parametrize("called", [False, True])
def test_half_precision_is_summed_in_single_precision(called: bool) -> None:
    head, hidden, targets = case(torch.bfloat16, called)
    logps, entropies = head_log_probs(LLAMA, head, hidden, targets)
    expected = naive(head(hidden).double(), targets)
    assert logps.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), expected[1], atol=1e-5, rtol=1e-5)


def test_without_gradients_the_logits_are_left_as_they_were() -> None:
    head, hidden, targets = case()
    with torch.no_grad():
        first = head_log_probs(LLAMA, head, hidden, targets)
        again = head_log_probs(LLAMA, head, hidden, targets)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_a_second_backward_pass_of_a_called_layer_is_refused_rather_than_wrong() -> None:
    head, hidden, targets = case(called=True)
    logps, _ = head_log_probs(LLAMA, head, hidden, targets)
    logps.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.sum().backward()


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("called", [False, True])
def test_a_confident_token_keeps_its_gradient_in_bfloat16(probability: float, called: bool) -> None:
    """At p = 0.999 a gradient of 1 − p is all rounding, where it is the difference of two bfloat16 numbers."""
    torch.manual_seed(0)
    head = nn.Linear(V, V, bias=False, dtype=torch.bfloat16)
    target = 7
    others = torch.randn(V, dtype=torch.float64)
    others[target] = -torch.inf
    others[target] = others.logsumexp(-1) + torch.tensor(probability / (1 - probability), dtype=torch.float64).log()
    with torch.no_grad():
        head.weight.copy_(torch.eye(V) + 0.1 * torch.randn(V, V))
    if called:
        head.register_forward_hook(lambda *_: None)
    hidden = torch.linalg.solve(head.weight.detach().double(), others).to(torch.bfloat16)[None]
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        states = hidden.detach().to(dtype).requires_grad_()
        if dtype == torch.bfloat16:
            logits = head(states).detach()
            logps, _ = head_log_probs(LLAMA, head, states, torch.tensor([target]))
        else:  # from the same rounded logits: their rounding is not the gradient's
            logits_too = (
                states @ head.weight.detach().double().T + (logits - (states @ head.weight.double().T)).detach()
            )
            logps, _ = naive(logits_too, torch.tensor([target]))
        logps.sum().backward()
        found.append(states.grad.double())
    assert ((found[0] - found[1]).norm() / found[1].norm()).item() < 0.01


@pytest.mark.parametrize("share", [True, False])
def test_responses_to_one_prompt_are_scored_as_alone(share: bool) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))
    prompts = [list(range(5, 25)), [3, 4], list(range(5, 25)), list(range(5, 25))]
    responses = [[7, 8], [9], [7, 10, 11], [12]]
    found = response_log_probs(model, prompts, responses, [[0, 1], [2, 3]], 0.7, share)
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = torch.tensor([prompt + response])
        logps = (model(ids).logits[0, :-1] / 0.7).log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        torch.testing.assert_close(torch.from_numpy(found[number]), logps[-len(response) :].detach())


def test_scoring_evaluates_whatever_mode_the_model_is_in() -> None:
    """A reference with live dropout would be another model at every look, and a frozen policy would have a KL to it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.5, **shape))
    lora = LoraConfig(
        r=4, lora_dropout=0.5, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    policy = get_peft_model(model, lora).train()
    dropped = [module for module in policy.modules() if type(module).__name__ == "Dropout" and module.p > 0]
    assert dropped
    found = [response_log_probs(policy, [[5, 6]], [[7, 8, 9]], [[0]])[0] for _ in range(2)]
    assert (found[0] == found[1]).all()
    assert all(module.training for module in dropped)
    policy.eval()
    assert (response_log_probs(policy, [[5, 6]], [[7, 8, 9]], [[0]])[0] == found[0]).all()
