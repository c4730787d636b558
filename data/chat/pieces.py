"""Rendered conversations as token ids, cut where trained and untrained text meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.rendering import render_prompt
from posttrain.data.messages import Conversation

Pieces = TypeVar("Pieces", str, list[int])


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of rendered texts, nothing added; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    if not unique:
        return []
    ids = dict(zip(unique, tokenizer(unique, add_special_tokens=False, verbose=False).input_ids, strict=True))
    return [ids[text] for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation]) -> list[list[int]]:
    """Return the token ids of conversations under the tokenizer's chat template, up to where the answer begins."""
    return encode_texts(tokenizer, [render_prompt(tokenizer, prompt) for prompt in prompts])


def response_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int]) -> str:
    """Return the text of sampled tokens as it stands behind that of their prompt, without special tokens.

    Decoded by themselves they may lose a space at their beginning, which a tokenizer of SentencePiece's kind takes for
    the one that it puts before every text.
    """
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *response]))
    text: str = whole[len(before) :]
    return text


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], cuts: Sequence[Sequence[int]]
) -> list[list[list[int]]]:
    """Return each text's token ids in pieces that meet at the given characters, in ascending order.

    The pieces are those of the whole text where its tokens break at the cuts. Where a token would span a cut, as when
    a tokenizer joins the template's newline with one that a response begins with, each piece is encoded by itself:
    so does generation, which continues a prompt that ends at the cut.
    """
    heads = [text[:cut] for text, text_cuts in zip(texts, cuts, strict=True) for cut in text_cuts]
    encoded = encode_texts(tokenizer, [*texts, *heads])
    wholes, prefixes = encoded[: len(texts)], iter(encoded[len(texts) :])
    pieces = []
    for text, text_cuts, whole in zip(texts, cuts, wholes, strict=True):
        text_heads = [next(prefixes) for _ in text_cuts]
        if all(whole[: len(head)] == head for head in text_heads):
            pieces.append(_split(whole, [len(head) for head in text_heads]))
        else:
            pieces.append(encode_texts(tokenizer, _split(text, text_cuts)))
    return pieces


def _split(sequence: Pieces, cuts: Sequence[int]) -> list[Pieces]:
    bounds = [0, *cuts, len(sequence)]
    return [sequence[start:end] for start, end in itertools.pairwise(bounds)]
