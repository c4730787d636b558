"""A sample beside others, in batches of requests that have nothing in common, against the same sample alone."""

from __future__ import annotations

import numpy as np
import pytest
from byte_models import VOCABULARY, build, byte_tokenizer

from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams


def unequal_requests(random: np.random.Generator, count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts with knobs, of which no two need be alike."""
    prompts = [random.integers(3, VOCABULARY, random.integers(1, 12)).tolist() for _ in range(count)]
    return [(prompt, _knobs(random)) for prompt in prompts]


def _knobs(random: np.random.Generator) -> SamplingParams:
    longest = int(random.integers(1, 9))
    return SamplingParams(
        max_tokens=longest,
        temperature=float(random.choice([0.0, 0.6, 1.0, 1.5])),
        top_k=int(random.choice([0, 0, 1, 5, 20, 64, 96])),
        top_p=float(random.choice([0.3, 0.9, 1.0, 1.0])),
        min_p=float(random.choice([0.0, 0.0, 0.1])),
        repetition_penalty=float(random.choice([1.0, 1.0, 1.3])),
        presence_penalty=float(random.choice([0.0, 0.0, 0.5])),
        frequency_penalty=float(random.choice([0.0, 0.0, 0.5, -0.5])),
        logit_bias={5: 2.0} if random.random() < 0.3 else {},
        stop_token_ids=tuple(random.integers(3, VOCABULARY, random.integers(0, 6)).tolist()),
        min_tokens=int(random.integers(longest + 1)) if random.random() < 0.3 else 0,
        num_samples=int(random.integers(1, 4)),
        seed=int(random.integers(3)),
        top_logprobs=int(random.choice([0, 0, 2])),
    )


@pytest.mark.parametrize(("batches", "pool"), [(40, 30), pytest.param(2000, 400, marks=pytest.mark.slow)])
def test_no_row_of_a_batch_of_unequal_knobs_differs_from_alone(batches: int, pool: int) -> None:
    """In double precision, where a forward of many rows rounds as that of one does once it is in single precision.

    Each request runs alone once, and then in the company of others that change from batch to batch.
    """
    model, random, tokenizer = build("llama").double(), np.random.default_rng(0), byte_tokenizer()
    requests = unequal_requests(random, pool)
    alone = [Sampler(model, tokenizer).generate([prompt], params)[0] for prompt, params in requests]
    for batch in range(batches):
        chosen = random.integers(pool, size=random.integers(2, 6)).tolist()
        prompts, each = zip(*(requests[number] for number in chosen), strict=True)
        together = Sampler(model, tokenizer, max_batch_size=int(random.integers(1, 12))).generate(prompts, each)
        for number, samples in zip(chosen, together, strict=True):
            own = [(sample.token_ids, sample.top_tokens) for sample in alone[number]]
            assert [(sample.token_ids, sample.top_tokens) for sample in samples] == own, (batch, requests[number])
