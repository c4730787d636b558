"""Greedy responses to prompts, in batches.

Letters of array shapes: B rows of the batch, T prompt tokens (padded on the left), S tokens with the response.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat import Messages, encode_texts, render_prompt
from posttrain.sample.batching import by_length, pad_rows
from posttrain.stage.progress import track


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

    The model runs on the device and in the mode that it is in.
    """
    ids = encode_prompts(tokenizer, prompts)
    config = _greedy_config(model, tokenizer, max_new_tokens)
    responses: dict[int, Response] = {}
    for rows in track(by_length(ids, batch_size), len(ids), "generate"):
        responses.update(zip(rows, _generate_batch(model, tokenizer, [ids[row] for row in rows], config), strict=True))
    return [responses[row] for row in range(len(ids))]


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], config: GenerationConfig
) -> list[Response]:
    ids_BT, mask_BT = (tensor.to(model.device) for tensor in pad_rows(ids, tokenizer.pad_token_id, "left"))
    sequences_BS = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config)
    responses = []
    for tokens in sequences_BS[:, ids_BT.shape[1] :].tolist():
        end = next((i for i, token in enumerate(tokens) if token in config.eos_token_id), None)
        responses.append(Response(tokenizer.decode(tokens[:end], skip_special_tokens=True), end is not None))
    return responses


def _greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Return the settings of a plain greedy search.

    `generate` fills what is None here from the model's own generation config, so whatever could bend the search or
    warn about being ignored is spelled out.
    """
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
