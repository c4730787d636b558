"""What optimizers keep, against the states that real ones have after a step."""

from typing import Any

import pytest

from posttrain.plan.families import shape_from_config
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import count_adapter, count_parameters
from posttrain.plan.optimizers import KEEPS, OptimizerKind, optimizer_bytes

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_8B = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"]


def _optimizer(model: Any, kind: OptimizerKind) -> Any:
    import torch
    from transformers.optimization import Adafactor

    from posttrain.train.engine.optimizers import muon

    names = {name for name, _ in model.named_parameters()}
    return {
        "adamw": lambda: torch.optim.AdamW(model.parameters()),
        "adafactor": lambda: Adafactor(model.parameters(), lr=1e-3, scale_parameter=False, relative_step=False),
        "muon": lambda: muon(model, names, 1e-3, 0.0, {}),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=1e-3),
        "sgd_momentum": lambda: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
    }[kind]()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KEEPS if kind != "adamw_8bit"])
def test_states_are_those_that_a_real_optimizer_keeps(kind: OptimizerKind, tied: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {**CONFIG, "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    optimizer = _optimizer(model, kind)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    states = [value for kept in optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
    kept = sum(value.nbytes for value in states if value.numel() > 1)  # counters are not counted
    assert optimizer_bytes(shape_from_config(config, "config"), "lm", kind) == kept


def test_eight_bits_leave_the_embedding_alone() -> None:
    parameters, embedding = count_parameters(LLAMA_8B), 128_256 * 4096
    of_others = (parameters - embedding) * 2 * (256 + 4) / 256
    assert optimizer_bytes(LLAMA_8B, "lm", "adamw_8bit") == pytest.approx(of_others + 8 * embedding, abs=1)


def test_an_adapter_is_all_that_moves() -> None:
    adapter = count_adapter(LLAMA_8B, 16)
    assert optimizer_bytes(LLAMA_8B, adapter=True) == 8 * adapter
    assert optimizer_bytes(LLAMA_8B, "score", adapter=True) == 8 * (adapter + 4096)
    assert optimizer_bytes(LLAMA_8B, "lm", "muon", adapter=True) == 4 * adapter
    assert optimizer_bytes(LLAMA_8B, "lm", "adafactor", adapter=True) < adapter


def test_experts_in_one_tensor_are_no_matrices_to_muon_and_many_to_adafactor() -> None:
    mixtral = KNOWN_SHAPES["mistralai/Mixtral-8x7B-v0.1"]
    experts = 32 * 8 * 3 * 4096 * 14336
    muon = optimizer_bytes(mixtral, "lm", "muon")
    assert 8 * experts < muon < 8 * count_parameters(mixtral)
    assert optimizer_bytes(mixtral, "lm", "adafactor") < 0.001 * optimizer_bytes(mixtral)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_are_spread_with_the_float32_copy_of_low_weights(dtype: Any) -> None:
    parameters = count_parameters(LLAMA_8B)
    kept = optimizer_bytes(LLAMA_8B, "lm", "muon")
    master = 4 * parameters if dtype == "bfloat16" else 0
    options: dict[str, Any] = {"tokens": 0, "dtype": dtype, "optimizer": "muon"}
    assert estimate_memory(LLAMA_8B, **options).optimizer == kept
    spread = estimate_memory(LLAMA_8B, num_processes=8, zero_stage=1, **options)
    assert spread.optimizer == (kept + master) // 8
