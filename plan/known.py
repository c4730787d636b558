"""Shapes of published models, so that a plan needs neither their weights nor the network."""

from __future__ import annotations

from posttrain.plan.model import ModelShape

KNOWN_SHAPES: dict[str, ModelShape] = {
    "HuggingFaceTB/SmolLM2-135M": ModelShape(49152, 576, 1536, 30, 9, 3, 64, tied_embeddings=True),
    "HuggingFaceTB/SmolLM2-360M": ModelShape(49152, 960, 2560, 32, 15, 5, 64, tied_embeddings=True),
    "HuggingFaceTB/SmolLM2-1.7B": ModelShape(49152, 2048, 8192, 24, 32, 32, 64, tied_embeddings=True),
    "Qwen/Qwen2.5-0.5B": ModelShape(151936, 896, 4864, 24, 14, 2, 64, tied_embeddings=True, qkv_bias=True),
    "Qwen/Qwen3-0.6B-Base": ModelShape(151936, 1024, 3072, 28, 16, 8, 128, tied_embeddings=True, qk_norm=True),
    "Qwen/Qwen3-0.6B": ModelShape(151936, 1024, 3072, 28, 16, 8, 128, tied_embeddings=True, qk_norm=True),
    "mistralai/Mistral-7B-v0.1": ModelShape(32000, 4096, 14336, 32, 32, 8, 128),
    "meta-llama/Llama-2-7b-hf": ModelShape(32000, 4096, 11008, 32, 32, 32, 128),
    "meta-llama/Llama-3.1-8B": ModelShape(128256, 4096, 14336, 32, 32, 8, 128),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(128256, 4096, 14336, 32, 32, 8, 128),
    "meta-llama/Llama-3.1-70B": ModelShape(128256, 8192, 28672, 80, 64, 8, 128),
    "meta-llama/Llama-3.1-405B": ModelShape(128256, 16384, 53248, 126, 128, 8, 128),
}
"""Hub name → shape: vocabulary, hidden and intermediate size, layers, heads, key-value heads, head size."""
