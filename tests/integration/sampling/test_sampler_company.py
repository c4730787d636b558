"""A sample beside others, in batches of requests that have nothing in common, against the same sample alone."""

from __future__ import annotations

import numpy as np
import pytest
from byte_models import VOCABULARY, build, byte_tokenizer

from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams


def unequal_requests(random: np.random.Generator, count: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts and knobs of one batch, of which no two need be alike."""
    prompts = [random.integers(3, VOCABULARY, random.integers(1, 20)).tolist() for _ in range(count)]
    each = [
        SamplingParams(
            max_tokens=int(random.integers(1, 16)),
            temperature=float(random.choice([0.0, 0.6, 1.0, 1.5])),
            top_k=int(random.choice([0, 0, 1, 5, 20, 64, 96])),
            top_p=float(random.choice([0.3, 0.9, 1.0, 1.0])),
            min_p=float(random.choice([0.0, 0.0, 0.1])),
            repetition_penalty=float(random.choice([1.0, 1.0, 1.3])),
            logit_bias={5: 2.0} if random.random() < 0.3 else {},
            stop_token_ids=tuple(random.integers(3, VOCABULARY, random.integers(0, 6)).tolist()),
            num_samples=int(random.integers(1, 4)),
            seed=int(random.integers(3)),
        )
        for _ in range(count)
    ]
    return prompts, each


@pytest.mark.parametrize(
    ("seed", "batches"), [(0, 40), *(pytest.param(seed, 250, marks=pytest.mark.slow) for seed in range(1, 9))]
)
def test_no_row_of_a_batch_of_unequal_knobs_differs_from_alone(seed: int, batches: int) -> None:
    """In double precision, where a forward of many rows rounds as that of one does once it is in single precision."""
    model, random = build("llama").double(), np.random.default_rng(seed)
    tokenizer = byte_tokenizer()
    alone = Sampler(model, tokenizer)
    for batch in range(batches):
        prompts, each = unequal_requests(random, int(random.integers(2, 6)))
        together = Sampler(model, tokenizer, max_batch_size=int(random.integers(1, 12))).generate(prompts, each)
        for prompt, params, samples in zip(prompts, each, together, strict=True):
            own = alone.generate([prompt], params)[0]
            assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in own], (batch, params)
