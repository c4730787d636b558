"""Models along the tree of shared prompts compute what they compute of each response alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM as AutoCausal
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from posttrain.models.cpu.llama_layers import is_known
from posttrain.models.shared_prompts import share_prompts, why_unshared, with_shared_rewards
from posttrain.models.tree.layout import lay_out
from posttrain.train.maths.ranking_loss import pairwise_ranking_loss
from posttrain.train.rows.collate import collate_ranked_groups, collate_shared_groups

PAD = 3
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": partial(LlamaConfig, **SIZES),
    "qwen2": partial(Qwen2Config, **SIZES),
    "qwen3": partial(Qwen3Config, **SIZES, head_dim=16),  # norms of queries and keys
    "qwen2_window": partial(Qwen2Config, **SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "mistral": partial(MistralConfig, **SIZES, sliding_window=4),
    "gemma": partial(GemmaConfig, **SIZES, head_dim=8),
    "gemma2": partial(Gemma2Config, **SIZES, head_dim=8, sliding_window=4, attn_logit_softcapping=0.5),
    "gemma3": partial(Gemma3TextConfig, **SIZES, head_dim=8, sliding_window=4, layer_types=MIXED),
    "gpt2": partial(GPT2Config, vocab_size=61, n_embd=32, n_layer=2, n_head=4, pad_token_id=PAD),
    "cohere": partial(CohereConfig, **SIZES),
}
ALONE = ("gpt2", "cohere")
"""Families whose classifiers differ, or are not there: their trunks are compared."""
ROWS = [
    {
        "prompt_ids": [5, 6, 7, 8, 9],
        "responses_ids": [[10, 11, 12, 4], [], [13, 14, 15, 16, 17, 18]],
        "ranks": [1, 3, 2],
    },
    {"prompt_ids": [20], "responses_ids": [[21, 22], [23]], "ranks": [2, 1]},
    {"prompt_ids": [7, 8, 9, 10, 11, 12, 13], "responses_ids": [[3, 5], [6], [8, 9, 1, 1]], "ranks": [1, 2, 2]},
    {"prompt_ids": [7, 30, 9], "responses_ids": [[3, 3]], "ranks": [1]},
]
for number, row in enumerate(ROWS):
    row["row"] = number


def build(kind: Any, config: PreTrainedConfig) -> Any:
    """Return a model whose norms and biases are not the ones and zeros that they start as."""
    torch.manual_seed(0)
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def loss_of(model: Any, batch: dict[str, Any]) -> Tensor:
    shared = {"groups": batch["groups"]} if "groups" in batch else {}
    rewards_R = model(input_ids=batch["input_ids"], use_cache=False, **shared).logits.squeeze(-1)
    pairs = (batch[name] for name in ("better", "worse", "weight", "rank_gap"))
    return pairwise_ranking_loss(rewards_R, *pairs, batch["num_groups"], 0.1, 0.01)


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ALONE])
def test_reward_model_has_the_loss_and_gradients_of_responses_alone(family: str) -> None:
    alone = build(AutoModelForSequenceClassification, FAMILIES[family](num_labels=1))
    assert not why_unshared(alone, "auto")
    expected = loss_of(alone, collate_ranked_groups(ROWS, PAD))
    wanted = gradients(expected, alone)
    shared = with_shared_rewards(share_prompts(copy.deepcopy(alone), on_gpu=False))
    assert is_known(shared.base_model) == (family in ("llama", "qwen2", "qwen3"))
    found = loss_of(shared, collate_shared_groups(ROWS))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    of_shared = gradients(found, shared)
    assert of_shared.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(of_shared[name], gradient, atol=1e-4, rtol=1e-4)
    # called as before, it does what it did
    again = loss_of(shared, collate_ranked_groups(ROWS, PAD))
    assert float(again.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


@pytest.mark.parametrize("family", ALONE)
def test_other_trunks_have_the_states_of_responses_alone(family: str) -> None:
    from posttrain.models.shared_prompts import shared_states

    model = build(AutoCausal, FAMILIES[family]()).eval()
    assert not why_unshared(model, "auto")
    rows = [(row["prompt_ids"], row["responses_ids"]) for row in ROWS]
    texts = [[*prompt, *response] for prompt, responses in rows for response in responses]
    with torch.no_grad():
        alone = [model.base_model(torch.tensor([text])).last_hidden_state[0, -1] for text in texts]
        ids_1T, groups = lay_out(rows)
        trunk = share_prompts(model, on_gpu=False).base_model
        found = shared_states(trunk, ids_1T, groups, groups.last_tokens())
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_adapters_and_checkpointed_activations_learn_the_same() -> None:
    plain = build(AutoModelForSequenceClassification, FAMILIES["llama"](num_labels=1))
    config = LoraConfig(target_modules="all-linear", modules_to_save=["score"], task_type=TaskType.SEQ_CLS)
    alone = get_peft_model(plain, config)
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    wanted = gradients(loss_of(alone, collate_ranked_groups(ROWS, PAD)), alone)
    shared = with_shared_rewards(share_prompts(copy.deepcopy(alone), on_gpu=False)).train()
    batch = collate_shared_groups(ROWS)
    for checkpointed in (False, True):
        if checkpointed:
            shared.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        for name, gradient in gradients(loss_of(shared, batch), shared).items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-4)


UNSHARED: list[tuple[str, Callable[[], PreTrainedConfig], str]] = [
    ("mamba", lambda: MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2), "mamba carries a state"),
    ("bloom", lambda: BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4), "bloom has an attention of its"),
    (
        "gpt_oss",
        lambda: GptOssConfig(**SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
        "gpt_oss has attention sinks",
    ),
    (
        "qwen3_next",
        lambda: Qwen3NextConfig(**SIZES, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
        "qwen3_next carries a state",
    ),
]


@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in UNSHARED], ids=[case[0] for case in UNSHARED])
def test_families_that_are_more_than_a_tree_are_refused_by_name(
    make: Callable[[], PreTrainedConfig], reason: str
) -> None:
    with torch.device("meta"):
        model = AutoCausal.from_config(make())
    assert why_unshared(model, "auto").startswith(reason)


@pytest.mark.parametrize(("attention", "shares"), [("auto", True), ("eager", True), ("flash_attention_2", False)])
def test_an_attention_that_was_asked_for_and_knows_no_tree_is_kept(attention: str, shares: bool) -> None:
    model = build(AutoModelForSequenceClassification, FAMILIES["llama"](num_labels=1))
    assert (not why_unshared(model, attention)) == shares


def test_each_prompt_is_there_once_and_nothing_is_padded() -> None:
    batch = collate_shared_groups(ROWS)
    assert batch["input_ids"].shape == (1, 15 + 4 + 14 + 5)
    alone = collate_ranked_groups(ROWS, PAD)
    for name in alone.keys() - {"input_ids"}:
        torch.testing.assert_close(batch[name], alone[name])
