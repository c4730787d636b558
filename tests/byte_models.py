"""Small models over single bytes, for tests of the sampler: their tokenizer, and one model of each architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
EOS = 2
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
WINDOW: dict[str, Any] = {**SHAPE, "sliding_window": 8}


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, eos_token_id=EOS, bos_token_id=None,
            pad_token_id=0, initializer_range=0.2,
        )
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama_eager": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager")),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "gpt2": _gpt2,
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**WINDOW)),
    "gemma3_window": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**WINDOW, head_dim=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    ),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return ARCHITECTURES[name]().eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One byte-level token per character code from 3 on; the first three are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 3]
    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": EOS} | {piece: 3 + n for n, piece in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def prompts_of(count: int, shortest: int = 1, longest: int = 30) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(3, VOCABULARY, random.integers(shortest, longest + 1)).tolist() for _ in range(count)]
