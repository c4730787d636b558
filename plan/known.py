"""Shapes of published models, so that a plan needs neither their weights nor the network.

The sizes are those of each model's `config.json`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.plan.families import read_shape, shape_from_config
from posttrain.plan.model import ModelShape
from posttrain.stage.errors import UsageError, did_you_mean

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_TIED = {"tie_word_embeddings": True}
_QWEN3_MOE = {"num_experts": 128, "num_experts_per_tok": 8}
_LLAMA4 = {"num_experts_per_tok": 1, "intermediate_size_mlp": 16384}
_GPT_OSS = {"num_experts_per_tok": 4}
_NEXT = {
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
_V3 = {
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}

_DENSE: dict[str, dict[str, tuple[int, ...]]] = {
    "llama": {
        "meta-llama/Llama-2-7b-hf": (32000, 4096, 11008, 32, 32, 32, 128),
        "meta-llama/Llama-2-13b-hf": (32000, 5120, 13824, 40, 40, 40, 128),
        "meta-llama/Llama-2-70b-hf": (32000, 8192, 28672, 80, 64, 8, 128),
        "meta-llama/Meta-Llama-3-8B": (128256, 4096, 14336, 32, 32, 8, 128),
        "meta-llama/Meta-Llama-3-70B": (128256, 8192, 28672, 80, 64, 8, 128),
        "meta-llama/Llama-3.1-8B": (128256, 4096, 14336, 32, 32, 8, 128),
        "meta-llama/Llama-3.1-8B-Instruct": (128256, 4096, 14336, 32, 32, 8, 128),
        "meta-llama/Llama-3.1-70B": (128256, 8192, 28672, 80, 64, 8, 128),
        "meta-llama/Llama-3.3-70B-Instruct": (128256, 8192, 28672, 80, 64, 8, 128),
        "meta-llama/Llama-3.1-405B": (128256, 16384, 53248, 126, 128, 8, 128),
    },
    "llama tied": {
        "HuggingFaceTB/SmolLM2-135M": (49152, 576, 1536, 30, 9, 3, 64),
        "HuggingFaceTB/SmolLM2-360M": (49152, 960, 2560, 32, 15, 5, 64),
        "HuggingFaceTB/SmolLM2-1.7B": (49152, 2048, 8192, 24, 32, 32, 64),
        "meta-llama/Llama-3.2-1B": (128256, 2048, 8192, 16, 32, 8, 64),
        "meta-llama/Llama-3.2-3B": (128256, 3072, 8192, 28, 24, 8, 128),
    },
    "smollm3 tied": {"HuggingFaceTB/SmolLM3-3B": (128256, 2048, 11008, 36, 16, 4, 128)},
    "granite tied": {
        "ibm-granite/granite-3.1-2b-instruct": (49155, 2048, 8192, 40, 32, 8, 64),
        "ibm-granite/granite-3.1-8b-instruct": (49155, 4096, 12800, 40, 32, 8, 128),
    },
    "mistral": {
        "mistralai/Mistral-7B-v0.3": (32768, 4096, 14336, 32, 32, 8, 128),
        "mistralai/Mistral-Nemo-Base-2407": (131072, 5120, 14336, 40, 32, 8, 128),
        "mistralai/Mistral-Small-24B-Base-2501": (131072, 5120, 32768, 40, 32, 8, 128),
    },
    "qwen2 tied": {
        "Qwen/Qwen2.5-0.5B": (151936, 896, 4864, 24, 14, 2, 64),
        "Qwen/Qwen2.5-1.5B": (151936, 1536, 8960, 28, 12, 2, 128),
        "Qwen/Qwen2.5-3B": (151936, 2048, 11008, 36, 16, 2, 128),
    },
    "qwen2": {
        "Qwen/Qwen2-7B": (152064, 3584, 18944, 28, 28, 4, 128),
        "Qwen/Qwen2.5-7B": (152064, 3584, 18944, 28, 28, 4, 128),
        "Qwen/Qwen2.5-14B": (152064, 5120, 13824, 48, 40, 8, 128),
        "Qwen/Qwen2.5-32B": (152064, 5120, 27648, 64, 40, 8, 128),
        "Qwen/Qwen2.5-72B": (152064, 8192, 29568, 80, 64, 8, 128),
    },
    "qwen3 tied": {
        "Qwen/Qwen3-0.6B-Base": (151936, 1024, 3072, 28, 16, 8, 128),
        "Qwen/Qwen3-0.6B": (151936, 1024, 3072, 28, 16, 8, 128),
        "Qwen/Qwen3-1.7B": (151936, 2048, 6144, 28, 16, 8, 128),
        "Qwen/Qwen3-4B": (151936, 2560, 9728, 36, 32, 8, 128),
    },
    "qwen3": {
        "Qwen/Qwen3-8B": (151936, 4096, 12288, 36, 32, 8, 128),
        "Qwen/Qwen3-14B": (151936, 5120, 17408, 40, 40, 8, 128),
        "Qwen/Qwen3-32B": (151936, 5120, 25600, 64, 64, 8, 128),
    },
    "gemma2 tied": {
        "google/gemma-2-2b": (256000, 2304, 9216, 26, 8, 4, 256),
        "google/gemma-2-9b": (256000, 3584, 14336, 42, 16, 8, 256),
        "google/gemma-2-27b": (256000, 4608, 36864, 46, 32, 16, 128),
    },
    "phi3": {"microsoft/phi-4": (100352, 5120, 17920, 40, 40, 10, 128)},
    "olmo2": {
        "allenai/OLMo-2-0425-1B": (100352, 2048, 8192, 16, 16, 16, 128),
        "allenai/OLMo-2-1124-7B": (100352, 4096, 11008, 32, 32, 32, 128),
        "allenai/OLMo-2-1124-13B": (100352, 5120, 13824, 40, 40, 40, 128),
        "allenai/OLMo-2-0325-32B": (100352, 5120, 27648, 64, 40, 8, 128),
    },
    "mixtral": {
        "mistralai/Mixtral-8x7B-v0.1": (32000, 4096, 14336, 32, 32, 8, 128),
        "mistralai/Mixtral-8x22B-v0.1": (32768, 6144, 16384, 56, 48, 8, 128),
    },
}
"""Family, with tied embeddings or without → hub name → the sizes of `_SIZES`."""

_OTHERS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "mistralai/Mistral-7B-v0.1": ("mistral", (32000, 4096, 14336, 32, 32, 8, 128), {"sliding_window": 4096}),
    "microsoft/Phi-3-mini-4k-instruct": ("phi3", (32064, 3072, 8192, 32, 32, 32, 96), {"sliding_window": 2047}),
    "google/gemma-3-1b-pt": ("gemma3_text", (262144, 1152, 6912, 26, 4, 1, 256), {"sliding_window": 512}),
    "google/gemma-3-4b-pt": ("gemma3_text", (262208, 2560, 10240, 34, 8, 4, 256), {"sliding_window": 1024}),
    "google/gemma-3-12b-pt": ("gemma3_text", (262208, 3840, 15360, 48, 16, 8, 256), {"sliding_window": 1024}),
    "google/gemma-3-27b-pt": ("gemma3_text", (262208, 5376, 21504, 62, 32, 16, 128), {"sliding_window": 1024}),
    "Qwen/Qwen3-30B-A3B": (
        "qwen3_moe",
        (151936, 2048, 6144, 48, 32, 4, 128),
        {**_QWEN3_MOE, "moe_intermediate_size": 768},
    ),
    "Qwen/Qwen3-235B-A22B": (
        "qwen3_moe",
        (151936, 4096, 12288, 94, 64, 4, 128),
        {**_QWEN3_MOE, "moe_intermediate_size": 1536},
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": ("qwen3_next", (151936, 2048, 5120, 48, 16, 2, 256), _NEXT),
    "meta-llama/Llama-4-Scout-17B-16E": (
        "llama4_text",
        (202048, 5120, 8192, 48, 40, 8, 128),
        {**_LLAMA4, "num_local_experts": 16},
    ),
    "meta-llama/Llama-4-Maverick-17B-128E": (
        "llama4_text",
        (202048, 5120, 8192, 48, 40, 8, 128),
        {**_LLAMA4, "num_local_experts": 128, "interleave_moe_layer_step": 2},
    ),
    "openai/gpt-oss-20b": ("gpt_oss", (201088, 2880, 2880, 24, 64, 8, 64), {**_GPT_OSS, "num_local_experts": 32}),
    "openai/gpt-oss-120b": ("gpt_oss", (201088, 2880, 2880, 36, 64, 8, 64), {**_GPT_OSS, "num_local_experts": 128}),
    "deepseek-ai/DeepSeek-V3": ("deepseek_v3", (129280, 7168, 18432, 61, 128, 128, 56), _V3),
    "deepseek-ai/DeepSeek-R1": ("deepseek_v3", (129280, 7168, 18432, 61, 128, 128, 56), _V3),
    "tiiuae/Falcon-H1-0.5B-Base": (
        "falcon_h1",
        (32784, 1024, 2048, 36, 8, 2, 64),
        {"mamba_d_ssm": 1536, "mamba_n_heads": 24, "mamba_d_state": 128},
    ),
    "tiiuae/Falcon-H1-7B-Base": (
        "falcon_h1",
        (130048, 3072, 12288, 44, 12, 2, 128),
        {"mamba_d_ssm": 3072, "mamba_n_heads": 24, "mamba_d_state": 256},
    ),
    "state-spaces/mamba2-2.7b": ("mamba2", (50288, 2560, 0, 64, 0, 0, 64), {"n_groups": 1, **_TIED}),
    "mistralai/Mamba-Codestral-7B-v0.1": ("mamba2", (32768, 4096, 0, 64, 0, 0, 64), {}),
}
"""Hub name → family, the sizes of `_SIZES`, and what else its configuration says."""


class _Known(Mapping[str, ModelShape]):
    """Builds a shape when it is asked for: all of them together would take as long as a plan may."""

    def __getitem__(self, name: str) -> ModelShape:
        return _known(name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for models in _DENSE.values() for name in models)
        yield from _OTHERS

    def __len__(self) -> int:
        return sum(map(len, _DENSE.values())) + len(_OTHERS)


@functools.cache
def _known(name: str) -> ModelShape:
    if name in _OTHERS:
        family, sizes, more = _OTHERS[name]
    else:
        found = [(family, models[name]) for family, models in _DENSE.items() if name in models]
        if not found:
            raise KeyError(name)
        family, sizes = found[0]
        family, more = family.removesuffix(" tied"), _TIED if family.endswith(" tied") else {}
    return shape_from_config({"model_type": family, **dict(zip(_SIZES, sizes, strict=True)), **more}, name)


KNOWN_SHAPES: Mapping[str, ModelShape] = _Known()
"""Hub name → shape."""


def shape_named(name: str, where: str) -> ModelShape:
    """Return the shape of a known model, a model folder or a `config.json`; ``where`` names the knob in messages.

    The end of a known name is enough: ``Qwen3-8B``. Raises UsageError for a name that is neither.
    """
    ends = [known for known in KNOWN_SHAPES if known == name or known.partition("/")[2].lower() == name.lower()]
    if ends:
        return KNOWN_SHAPES[ends[0]]
    if Path(name).exists():
        return read_shape(Path(name))
    hint = did_you_mean(name, [*KNOWN_SHAPES, *(known.partition("/")[2] for known in KNOWN_SHAPES)])
    raise UsageError(f"{where}: {name!r}: neither a known model nor a folder with a config.json{hint}")
