"""Responses to many prompts: greedy ones, and several samples each."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.messages import Conversation
from posttrain.models.batching import by_length
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.progress import track

CHUNK_BATCHES = 8
"""Batches between two signs of progress; within them, prompts enter as responses end."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    max_new_tokens: int,
    batch_size: int,
) -> list[Sample]:
    """Return the greedy response to each conversation, in the order of ``prompts``.

    The model runs on the device that it is on; ``batch_size`` responses are generated at once.
    """
    ids = encode_prompts(tokenizer, prompts)
    sampler = Sampler(model, tokenizer, max_batch_size=batch_size)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=0.0)
    responses: dict[int, Sample] = {}
    for rows in track(by_length(ids, CHUNK_BATCHES * batch_size), len(ids), "generate"):
        samples = sampler.generate([ids[row] for row in rows], params)
        responses.update(zip(rows, (one for (one,) in samples), strict=True))
    return [responses[row] for row in range(len(ids))]


def sample_prompts(
    sampler: Sampler, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> list[list[Sample]]:
    """Return the samples of each prompt, whose parameters have its place in ``params``, and show how far it got."""
    most = max((request.num_samples for request in params), default=1)
    chunk = max(1, CHUNK_BATCHES * sampler.max_batch_size // most)
    samples: dict[int, list[Sample]] = {}
    for rows in track(by_length(prompts, chunk), len(prompts), "sample"):
        own = sampler.generate([prompts[row] for row in rows], [params[row] for row in rows])
        samples.update(zip(rows, own, strict=True))
    return [samples[row] for row in range(len(prompts))]
