"""Greedy responses to prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat import Messages, encode_texts, render_prompt
from posttrain.sample.batching import by_length
from posttrain.sample.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.progress import track

CHUNK_BATCHES = 8
"""Batches between two signs of progress; within them, prompts enter as responses end."""


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model answered."""

    text: str
    """Without special tokens."""
    ended: bool
    """Whether the model ended its turn, rather than being cut at the limit of tokens."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[list[int]]:
    """Return the token ids of conversations under the tokenizer's chat template, up to where the answer begins."""
    return encode_texts(tokenizer, [render_prompt(tokenizer, prompt) for prompt in prompts])


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    max_new_tokens: int,
    batch_size: int,
) -> list[Response]:
    """Return the greedy response to each conversation, in the order of ``prompts``.

    The model runs on the device that it is on; ``batch_size`` responses are generated at once.
    """
    ids = encode_prompts(tokenizer, prompts)
    sampler = Sampler(model, tokenizer, max_batch_size=batch_size)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=0.0)
    responses: dict[int, Response] = {}
    for rows in track(by_length(ids, CHUNK_BATCHES * batch_size), len(ids), "generate"):
        samples = sampler.generate([ids[row] for row in rows], params)
        responses.update(
            zip(rows, (Response(one.text, one.finish_reason == "stop") for (one,) in samples), strict=True)
        )
    return [responses[row] for row in range(len(ids))]
