"""Every causal family of transformers: sampled, or refused by a line that names it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers
from transformers import Phi3Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from posttrain.models.declared import rope_border
from posttrain.sample.engine.kv_cache import attention_layers
from posttrain.stage.errors import UsageError

RECURRENT = {
    "bamba", "falcon_h1", "falcon_mamba", "jamba", "kimi_linear", "mamba", "mamba2", "minimax", "nemotron_h",
    "olmo_hybrid", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
}  # fmt: skip
SHARED_KEYS = {"gemma3n", "gemma3n_text"}
NO_CACHE = {"openai-gpt", "reformer", "xlm", "xlnet"}
SAMPLED = {
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi",
    "phi3", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "olmo", "olmo2", "cohere", "cohere2", "granite", "smollm3",
    "deepseek_v3", "glm4", "gpt_oss", "starcoder2", "stablelm", "mpt", "gptj",
}  # fmt: skip


FEW = {"llama", "mistral", "qwen3", "gemma3_text", "phi3", "gpt2"}


def refusal(family: str) -> str:
    """Return what the sampler says of a family with its default configuration; nothing where it samples it."""
    config: Any = CONFIG_MAPPING[family]()
    names: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    model = getattr(transformers, names if isinstance(names, str) else names[0])
    try:
        layers = attention_layers(config, "past_key_values" in inspect.signature(model.forward).parameters)
    except UsageError as error:
        return str(error)
    return "" if layers > 0 else "no layers"


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_family_is_sampled_or_refused_by_name(everything: bool) -> None:
    """All of them takes a minute, most of it to import them."""
    said = {}
    some = RECURRENT | SHARED_KEYS | NO_CACHE | FEW
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if everything else some:
        try:
            CONFIG_MAPPING[family]()
        except Exception:
            continue  # has no default configuration
        said[family] = refusal(family)
    refused = {family: line for family, line in said.items() if line}
    assert len(said) > (150 if everything else 25)
    assert refused.keys() >= RECURRENT | SHARED_KEYS | NO_CACHE
    assert refused.keys().isdisjoint(SAMPLED) and said.keys() >= (SAMPLED if everything else FEW)
    for family, line in refused.items():
        assert "cannot be sampled here" in line and line.split(":")[0], family


def test_hybrids_are_refused_by_their_layers() -> None:
    config = transformers.Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(UsageError, match="lfm2: layers with a state that is not keys and values"):
        attention_layers(config)


def test_longrope_has_a_border() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48, "original_max_position_embeddings": 4096}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config = Phi3Config(max_position_embeddings=131_072, original_max_position_embeddings=4096, rope_parameters=rope)
    assert rope_border(config) == 4096
    assert rope_border(Phi3Config()) is None
