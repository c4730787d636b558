"""What is refused, or chosen, by precision, device and server before a model loads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.sample.backends.server import largest_gap, served_dtype
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build
from posttrain.train.config.dpo import DpoConfig
from posttrain.train.config.ppo import PpoConfig
from posttrain.train.engine.arguments import require_fast_precision
from posttrain.train.sft import pack_attention


def test_a_billion_parameters_in_float32_on_a_gpu_have_to_be_asked_for() -> None:
    require_fast_precision(10**9)
    with pytest.raises(UsageError, match=r"float32 for 8\.0 billion parameters on a GPU; set dtype=bfloat16"):
        require_fast_precision(8 * 10**9)


def test_options_of_losses_are_taken() -> None:
    given = {"f_divergence_type": "forward_kl", "f_alpha_divergence_coef": 1, "discopop_tau": 0.1}
    assert build(DpoConfig, {"loss_options": given}, "train.dpo").loss_options == given
    assert build(DpoConfig, {"loss_options": {"use_weighting": True}}, "train.dpo").options()["use_weighting"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ld_alpha", "reference log-probabilities are sums over all of them"),
        ("beta", "set train.dpo.beta"),
        ("loss_type", "set train.dpo.loss"),
        ("max_length", "set data.tokenize.max_length"),
        ("sync_ref_model", "computed once"),
        ("discopop_tua", "did you mean 'discopop_tau'"),
        ("learning_rate", "not an option of a loss"),
    ],
)
def test_other_options_are_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        build(DpoConfig, {"loss_options": {name: 0.5}}, "train.dpo")
    assert f"loss_options.{name}: " in str(refused.value)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("attention", "on_gpu", "expected"),
    [
        ("auto", True, "flex_attention"),
        ("auto", False, "auto"),
        ("sdpa", True, "sdpa"),
        ("flash_attention_2", True, "flash_attention_2"),
    ],
)
def test_packs_take_flex_attention_on_a_gpu(attention: str, on_gpu: bool, expected: str) -> None:
    assert pack_attention(attention, on_gpu) == expected


@pytest.mark.parametrize(
    ("info", "dtype"),
    [
        ('{"vllm_config": "model=\'m\', dtype=torch.bfloat16, max_seq_len=64"}', "bfloat16"),
        ('{"model_config": {"dtype": "torch.float32"}}', "float32"),
        ('{"model_config": {"dtype": "float16"}}', "float16"),
        ("not found", None),
    ],
)
def test_a_servers_precision_is_read_from_what_it_says(info: str, dtype: str | None) -> None:
    assert served_dtype(info) == dtype


def test_a_bfloat16_server_of_a_float32_policy_is_healthy() -> None:
    assert largest_gap(torch.float32, "float32") == 1e-3
    assert largest_gap(torch.float32, "bfloat16") == largest_gap(torch.float32, None) == 0.1
    assert largest_gap(torch.bfloat16, "bfloat16") == 0.1


def test_another_temperature_needs_a_server_that_says_what_it_drew_from() -> None:
    knobs: dict[str, Any] = {"backend": "vllm", "temperature": 0.7}
    with pytest.raises(UsageError, match="--logprobs-mode processed_logprobs"):
        build(PpoConfig, knobs, "train.ppo")
    assert build(PpoConfig, {**knobs, "server_logprobs": "processed"}, "train.ppo").temperature == 0.7
