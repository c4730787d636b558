"""The trunk in functions of its own against transformers', forward and backward; and where it must not be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from posttrain.models.cpu.linear import embed, is_plain, products
from posttrain.models.cpu.llama_layers import chosen_states, is_known
from posttrain.models.token_log_probs import head_log_probs
from posttrain.train.nets.actor_critic import states_before

PAD = 3
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": partial(LlamaConfig, **SIZES, num_key_value_heads=4),
    "grouped": partial(LlamaConfig, **SIZES, num_key_value_heads=2),
    "tied": partial(LlamaConfig, **SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "biased": partial(LlamaConfig, **SIZES, attention_bias=True, mlp_bias=True),
    "wide_heads": partial(LlamaConfig, **SIZES, head_dim=16),
    "yarn": partial(LlamaConfig, **SIZES, rope_parameters={"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0}),
    "qwen2": partial(Qwen2Config, **SIZES, num_key_value_heads=2),
    "qwen3": partial(Qwen3Config, **SIZES, num_key_value_heads=2, head_dim=16),
}


def build(config: PreTrainedConfig) -> Any:
    """Return a model whose norms and biases are not the ones and zeros that they start as."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return three batches: tokens, and which of them are responses; one row has the padding token inside it.

    Rows of the last begin alike: one is the beginning of others, and some predict different tokens from one state.
    """
    generator = torch.Generator().manual_seed(1)
    made = []
    for lengths in ([(4, 9), (2, 5), (7, 8)], [(1, 12), (5, 10)]):
        width = max(end for _, end in lengths)
        ids_BT = torch.randint(4, 61, (len(lengths), width), generator=generator)
        chosen_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for row, (start, end) in enumerate(lengths):
            ids_BT[row, end:] = PAD
            chosen_BT[row, start:end] = True
        ids_BT[0, 1] = PAD
        made.append((ids_BT, chosen_BT))
    ids_BT = torch.randint(4, 61, (5, 24), generator=generator)
    ids_BT[1:4, :20] = ids_BT[0, :20]
    chosen_BT = torch.arange(24) >= torch.tensor([20, 17, 20, 20, 3])[:, None]
    chosen_BT &= torch.arange(24) < torch.tensor([24, 18, 22, 23, 24])[:, None]
    return [*made, (ids_BT, chosen_BT)]


def in_full_precision(model: Any) -> Any:
    """Return a copy whose norms keep float64; transformers' own round to float32 inside."""
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if hasattr(module, "variance_epsilon"):
            shape, epsilon = module.weight.shape, module.variance_epsilon
            module.forward = partial(functional.rms_norm, normalized_shape=shape, weight=module.weight, eps=epsilon)
    return reference


def learn(model: Any, states: Callable[[Any, Tensor, Tensor], Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return log-probabilities of micro-batches and the gradients that all leave."""
    logps = []
    for ids_BT, chosen_BT in batches():
        states_SE = states(model.model, ids_BT, functional.pad(chosen_BT[:, 1:], (0, 1)))
        logps_S, entropies_S = head_log_probs(model, model.lm_head, states_SE, ids_BT[chosen_BT], 0.8)
        weights_S = torch.linspace(-1, 2, len(logps_S), dtype=logps_S.dtype)
        ((logps_S + 0.3 * entropies_S) * weights_S).sum().backward()
        logps.append(logps_S.detach())
    return logps, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def of_modules(trunk: Any, ids_BT: Tensor, chosen_BT: Tensor) -> Tensor:
    states_SE: Tensor = trunk(input_ids=ids_BT, use_cache=False).last_hidden_state[chosen_BT]
    return states_SE


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_gradients_are_those_of_the_modules(kind: str) -> None:
    model = build(CONFIGS[kind]()).double()
    expected = learn(in_full_precision(model), of_modules)
    found = learn(model, chosen_states)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    assert found[1].keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("ends", [[9, 5, 8], [6, 6, 6], [4, 0, 1]])
def test_what_nobody_asks_for_is_not_computed(ends: list[int]) -> None:
    model = build(CONFIGS["grouped"]())
    ids_BT = torch.randint(4, 61, (3, 9), generator=torch.Generator().manual_seed(2))
    chosen_BT = torch.arange(9) == torch.tensor(ends)[:, None] - 1
    expected = of_modules(model.model, ids_BT, chosen_BT)
    no_token = torch.arange(9) >= torch.tensor(ends).clamp(min=1)[:, None]
    found = chosen_states(model.model, ids_BT.masked_fill(no_token, -1), chosen_BT)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_in_single_precision_it_stands_in_for_the_modules(kind: str) -> None:
    model = build(CONFIGS[kind]())
    assert is_known(model.model)
    expected = learn(copy.deepcopy(model), of_modules)
    torch.testing.assert_close(learn(model, chosen_states), expected, atol=2e-5, rtol=2e-5)
    ids_BT, chosen_BT = batches()[0]
    before_BT = functional.pad(chosen_BT[:, 1:], (0, 1))
    assert torch.equal(states_before(model.model, ids_BT, chosen_BT), chosen_states(model.model, ids_BT, before_BT))


def test_weights_that_have_diverged_give_no_numbers_and_not_zeros() -> None:
    model = build(CONFIGS["llama"]())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e22)  # whose squares overflow
    ids_BT = torch.arange(10, 22)[None]
    states_SE = chosen_states(model.base_model, ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
    assert bool(states_SE.isnan().all())


def test_frozen_weights_get_no_gradient_and_let_others_through() -> None:
    model = build(CONFIGS["biased"]()).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0.self_attn.q_proj" in name or "layers.1.input_layernorm" in name)
    expected = learn(in_full_precision(model), of_modules)
    found = learn(model, chosen_states)
    assert len(found[1]) == 3
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_a_product_that_is_not_used_costs_no_gradient() -> None:
    torch.manual_seed(0)
    used, unused = nn.Linear(5, 4), nn.Linear(5, 6)
    states = torch.randn(3, 5, requires_grad=True)
    products(states, unused, used)[1].sum().backward()
    assert unused.weight.grad is None and unused.bias.grad is None
    torch.testing.assert_close(states.grad, used.weight.detach().sum(0).expand(3, 5))


def test_gradients_of_an_embedding_add_up_over_repeated_tokens_and_micro_batches() -> None:
    embedding = nn.Embedding(7, 2, padding_idx=0)
    for _ in range(2):
        embed(torch.tensor([4, 0, 4, 6]), embedding).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[:, 0].tolist() == [0, 0, 0, 0, 4, 0, 2]


def hook(model: Any) -> Any:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    return model


def backward_hook(model: Any) -> Any:
    model.model.norm.register_full_backward_hook(lambda *_: None)
    return model


def own_forward(model: Any) -> Any:
    norm = model.model.layers[0].input_layernorm
    norm.forward = partial(type(norm).forward, norm)
    return model


def other_linear(model: Any) -> Any:
    class Scaled(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return super().forward(states) * 2

    model.model.layers[0].mlp.up_proj = Scaled(32, 56)
    return model


def adapter(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"])).get_base_model()


def dropout(model: Any) -> Any:
    model.model.layers[2].self_attn.attention_dropout = 0.1
    return model.train()


def checkpointing(model: Any) -> Any:
    model.activation_checkpointing_enable()
    return model.train()


def in_parts(model: Any) -> Any:
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(torch.empty(0))
    return model


TOUCHED: dict[str, Callable[[Any], PreTrainedModel]] = {
    "hook": hook,
    "backward_hook": backward_hook,
    "own_forward": own_forward,
    "other_linear": other_linear,
    "adapter": adapter,
    "dropout": dropout,
    "checkpointing": checkpointing,
    "in_parts": in_parts,
    "bfloat16": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("kind", TOUCHED)
def test_a_model_that_was_changed_is_called_as_it_is(kind: str) -> None:
    assert not is_known(TOUCHED[kind](build(CONFIGS["llama"]())).model)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, attn_implementation="eager"),
        LlamaConfig(**SIZES, hidden_act="gelu"),
        Qwen2Config(**SIZES, num_key_value_heads=4, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        MistralConfig(**SIZES, num_key_value_heads=4),
        GemmaConfig(**SIZES, num_key_value_heads=4, head_dim=8),
    ],
    ids=["eager", "gelu", "sliding", "mistral", "gemma"],
)
def test_another_architecture_is_called_as_it_is(config: PreTrainedConfig) -> None:
    assert not is_known(build(config).model)


def test_autocast_is_left_to_the_modules() -> None:
    model = build(CONFIGS["llama"]())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_known(model.model) and not is_plain(model.lm_head)


def test_a_watched_trunk_is_called() -> None:
    model, calls = build(CONFIGS["llama"]()), []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    ids_BT, chosen_BT = batches()[0]
    states_SE = states_before(model.model, ids_BT, chosen_BT)
    before_BT = functional.pad(chosen_BT[:, 1:], (0, 1))
    assert calls == [1]
    torch.testing.assert_close(states_SE, chosen_states(model.model, ids_BT, before_BT), atol=1e-5, rtol=1e-5)
