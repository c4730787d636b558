"""The workloads of the sampler's benchmarks, and their models; of our own code it needs none."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STORIES = Path(__file__).resolve().parents[1].parent / "shared" / "models" / "stories260k"


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload: prompts of some lengths, and how many tokens each is to get."""

    name: str
    model: str
    prompts: int
    prompt_tokens: tuple[int, int]
    new_tokens: tuple[int, int]
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    batch_api: bool = False
    """Whether `generate_batch`, which is slow on CPU, runs too."""
    detail: bool = False
    """Whether to show where the time goes, and what the plain forward buys."""
    shared: int = 0
    """Tokens that all prompts begin with, before their own."""
    longest: int = 0
    """Tokens of the first prompt, where it is longer than the others."""

    def requests(self, vocabulary: int) -> tuple[list[list[int]], list[int]]:
        """Return prompts and how many tokens each of their samples gets."""
        generator = random.Random(0)
        prompts = [
            [generator.randrange(3, vocabulary) for _ in range(generator.randint(*self.prompt_tokens))]
            for _ in range(self.prompts)
        ]
        beginning = [generator.randrange(3, vocabulary) for _ in range(self.shared)]
        prompts = [beginning + prompt for prompt in prompts]
        if self.longest:
            prompts[0] = [generator.randrange(3, vocabulary) for _ in range(self.longest)]
        return prompts, [generator.randint(*self.new_tokens) for _ in range(self.prompts)]


CASES = (
    Case("mixed", "llama15m", 64, (16, 64), (64, 256), batch_api=True, detail=True),
    Case("mixed_greedy", "llama15m", 64, (16, 64), (64, 128), temperature=0.0),
    Case("best_of_8", "llama15m", 16, (256, 256), (64, 64), samples=8),
    Case("top_p", "llama15m_peaked", 64, (16, 64), (32, 96), top_p=0.9),
    Case("one_long", "llama15m", 64, (16, 64), (16, 32), longest=1900),
    Case("shared_system", "llama15m", 64, (8, 24), (16, 16), shared=1000),
    Case("mixed", "stories260k", 64, (16, 64), (64, 256), batch_api=True, detail=True),
    Case("mixed_greedy", "stories260k", 64, (16, 64), (64, 128), temperature=0.0),
    Case("best_of_8", "stories260k", 16, (256, 256), (64, 64), samples=8),
    Case("top_p", "stories260k", 64, (16, 64), (64, 256), top_p=0.9),
)


def quick(case: Case) -> Case:
    """Return a case with a quarter of its new tokens."""
    return dataclasses.replace(case, new_tokens=(case.new_tokens[0] // 4, case.new_tokens[1] // 4), batch_api=False)


def load(name: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return a model that nothing ends, and a tokenizer with its vocabulary."""
    if name == "stories260k":
        model: Any = AutoModelForCausalLM.from_pretrained(STORIES)
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32_000,
                hidden_size=288,
                intermediate_size=768,
                num_hidden_layers=6,
                num_attention_heads=6,
                num_key_value_heads=6,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
            )
        )
    if name == "llama15m_peaked":  # logits of a trained model's spread: nuclei of tens of tokens instead of thousands
        model.model.norm.weight.data *= 14
    model.generation_config = GenerationConfig(pad_token_id=0)
    vocabulary = {f"t{number} ": number for number in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0 ")))
    return model.eval(), tokenizer
