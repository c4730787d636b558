"""Counts against published and measured figures; activation bytes against what autograd really keeps."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.plan.families import read_shape, shape_from_config
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.memory import block_bytes_per_token, estimate_memory
from posttrain.plan.model import (
    ModelShape,
    count_adapter,
    count_parameters,
    kv_bytes_per_token,
    training_flops_per_token,
)
from posttrain.stage.errors import UsageError

LLAMA_8B = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"]
GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008, 2 * 30 * 192 * 2),
        ("Qwen/Qwen2.5-0.5B", 494_032_768, 12_288),
        ("Qwen/Qwen3-0.6B-Base", 596_049_920, 2 * 28 * 1024 * 2),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616, 524_288),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248, 131_072),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496, 327_680),
        ("meta-llama/Llama-3.1-405B", 405_853_388_800, 516_096),
    ],
)
def test_published_sizes(name: str, parameters: int, kv_bytes: int) -> None:
    shape = KNOWN_SHAPES[name]
    assert (count_parameters(shape), kv_bytes_per_token(shape)) == (parameters, kv_bytes)


def test_flops_follow_megatrons_causal_count_for_llama_3_8b() -> None:
    flops = training_flops_per_token(LLAMA_8B, 8192)
    assert flops == pytest.approx(5.147e10, rel=1e-4)
    assert flops == 6 * (8_030_261_248 - 128_256 * 4096) + 6 * 32 * 4096 * 8192


def test_an_adapter_costs_four_flops_per_frozen_parameter() -> None:
    adapter = count_adapter(LLAMA_8B, 16)
    full, lora = (training_flops_per_token(LLAMA_8B, 0, adapter_parameters=count) for count in (None, adapter))
    assert lora == full * 4 / 6 + 6 * adapter


def test_adapter_counts_follow_pefts_target_modules() -> None:
    attention = 32 * 16 * ((4096 + 4096) + (4096 + 1024))  # q_proj and v_proj
    assert count_adapter(LLAMA_8B, 16, ["q_proj", "v_proj"]) == attention
    assert count_adapter(LLAMA_8B, 16, r".*\.(q|v)_proj") == attention
    assert count_adapter(LLAMA_8B, 16, r".*\.layers\.[01]\..*(q|v)_proj") == attention // 16
    assert count_adapter(LLAMA_8B, 16) == 41_943_040


def _states(**options: object) -> tuple[int, int, int]:
    estimate = estimate_memory(LLAMA_8B, tokens=0, **options)  # type: ignore[arg-type]
    return estimate.weights, estimate.gradients, estimate.optimizer


def test_state_bytes_of_full_finetuning() -> None:
    parameters = 8_030_261_248
    assert _states() == (4 * parameters, 4 * parameters, 8 * parameters)
    assert _states(dtype="bfloat16") == (6 * parameters, 4 * parameters, 8 * parameters)
    assert _states(dtype="bfloat16", num_processes=2) == (6 * parameters, 8 * parameters, 8 * parameters)


def test_state_bytes_of_zero_stages_on_eight_processes() -> None:
    parameters = 8_030_261_248
    gathered = 4 * 128_256 * 4096
    sharded = {"dtype": "bfloat16", "num_processes": 8}
    assert sum(_states(zero_stage=0, **sharded)) == 16 * parameters
    assert sum(_states(zero_stage=1, **sharded)) == 4 * parameters + 12 * parameters // 8
    assert sum(_states(zero_stage=2, **sharded)) == 2 * parameters + 14 * parameters // 8
    assert sum(_states(zero_stage=3, **sharded)) == 16 * parameters // 8 + gathered


def test_state_bytes_of_adapters() -> None:
    parameters, adapter = 8_030_261_248, 41_943_040
    lora = estimate_memory(LLAMA_8B, tokens=0, adapter="lora", rank=16, dtype="bfloat16")
    assert (lora.parameters, lora.trainable) == (parameters + adapter, adapter)
    assert (lora.weights, lora.gradients, lora.optimizer) == (2 * parameters + 6 * adapter, 4 * adapter, 8 * adapter)
    qlora = estimate_memory(LLAMA_8B, tokens=0, adapter="qlora", rank=16, dtype="bfloat16")
    linear = 32 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336)
    # 4 bits, an 8-bit scale per 64 weights and a 32-bit one per 256 scales; what is not a linear map stays in float32
    four_bit = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    assert qlora.weights == pytest.approx(four_bit + 4 * (parameters - linear) + 6 * adapter, abs=1)


def test_a_reward_model_has_a_score_instead_of_a_vocabulary_head() -> None:
    score = estimate_memory(LLAMA_8B, tokens=1000, head="score", adapter="lora", rank=16)
    assert score.trainable == 41_943_040 + 4096
    assert count_parameters(LLAMA_8B, "score") == 8_030_261_248 - 128_256 * 4096 + 4096
    assert score.head == 0


def test_known_real_runs_fit_where_they_are_known_to_fit() -> None:
    lora = estimate_memory(
        LLAMA_8B, tokens=2 * 2048, adapter="lora", dtype="bfloat16", gradient_checkpointing=True, num_processes=8
    )
    assert 16 * GIB < lora.total < 24 * GIB
    full = estimate_memory(LLAMA_8B, tokens=2048, dtype="bfloat16", gradient_checkpointing=True)
    assert full.total > 80 * GIB


def test_shapes_are_read_from_hugging_face_configs(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_shape(tmp_path) == KNOWN_SHAPES["Qwen/Qwen3-0.6B-Base"]
    with pytest.raises(UsageError, match="model_type 'qwen4' cannot be planned; did you mean 'qwen3'"):
        shape_from_config({**config, "model_type": "qwen4"}, "config.json")
    with pytest.raises(UsageError, match="give a local Hugging Face model folder"):
        read_shape(tmp_path / "absent")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_counts_agree_with_transformers(family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    config = AutoConfig.for_model(family, **_tiny(SMALL), tie_word_embeddings=family == "qwen3", **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert count_parameters(shape_from_config(config.to_dict(), "config")) == sum(p.numel() for p in model.parameters())


SMALL = ModelShape(
    vocab_size=64, hidden_size=64, intermediate_size=160, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32
)


def _tiny(shape: ModelShape) -> dict[str, object]:
    names = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
    }
    fields = dataclasses.asdict(shape)
    for own in ("tied_embeddings", "qkv_bias", "output_bias", "mlp_bias", "qk_norm", "blocks"):
        del fields[own]
    return {names.get(name, name): value for name, value in fields.items()}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("adapter", "weights", "autocast"),
    [
        ("full", "float32", False),
        ("full", "float32", True),
        ("full", "bfloat16", False),
        ("lora", "float32", False),
        ("lora", "bfloat16", True),
    ],
)
def test_block_activations_to_the_byte(family: str, adapter: str, weights: str, autocast: bool) -> None:
    shape = dataclasses.replace(SMALL, qk_norm=family == "qwen3")
    one, two = (_saved_bytes_per_token(family, layers, adapter, weights, autocast) for layers in (1, 2))
    dtype = "bfloat16" if autocast or weights == "bfloat16" else "float32"
    deepspeed = adapter == "full" and weights == "bfloat16"
    expected = block_bytes_per_token(shape, adapter=adapter, rank=4, dtype=dtype, deepspeed=deepspeed)  # type: ignore[arg-type]
    assert two - one == expected


def _saved_bytes_per_token(family: str, layers: int, adapter: str, weights: str, autocast: bool) -> float:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **_tiny(dataclasses.replace(SMALL, num_layers=layers)))
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, weights)).train()
    if adapter == "lora":
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora).base_model.model
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def saved(length: int) -> int:
        kept: dict[int, torch.Tensor] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), context:
            output = model.model(input_ids=torch.zeros(2, length, dtype=torch.long), use_cache=False)
        assert output.last_hidden_state.requires_grad
        return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)

    return (saved(128) - saved(64)) / 128


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, posttrain.plan.memory, posttrain.plan.table, posttrain.plan.known;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
