"""Sampling from a causal language model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.sample.constraint import ConstraintFactory
from posttrain.sample.sampling import FinishReason, Sample, SamplingParams


class Sampler:
    """Continues prompts with samples of a model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
        accept: Callable[[int, Sample], bool] | None = None,
        on_token: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """Return the samples of each prompt of token ids.

        ``accept(prompt, sample)`` is called when a sample ends; True cancels the samples of that prompt that still run.
        ``on_token(prompt, sample, token)`` is called with every token.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        return [[self._one(ids, p, n) for n in range(p.num_samples)] for ids, p in zip(prompts, each, strict=True)]

    def _one(self, prompt: list[int], params: SamplingParams, index: int) -> Sample:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(params.seed + index)
        tokens: list[int] = []
        logprobs: list[float] = []
        reason: FinishReason = "length"
        for _ in range(params.max_tokens):
            logits = self.model(torch.tensor([prompt + tokens])).logits[0, -1].float()
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial((logits / params.temperature).softmax(-1), 1, generator=generator))
            tokens.append(token)
            logprobs.append(float(logits.log_softmax(-1)[token]))
            if token == self.tokenizer.eos_token_id:
                reason = "stop"
                break
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Sample(tokens, logprobs, logprobs, reason, text, time.perf_counter() - start)
