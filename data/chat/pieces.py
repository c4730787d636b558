"""Rendered conversations as token ids, cut where trained and untrained text meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.rendering import render_prompt
from posttrain.data.chat.thinking import choose_reasoning
from posttrain.data.messages import Conversation
from posttrain.stage.errors import UsageError

_ANCHORS = ("\n", ".", "|", "a")
"""Characters to put before a text that is to be encoded as it stands behind another one."""
Pieces = TypeVar("Pieces", str, list[int])


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of rendered texts, nothing added; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    if not unique:
        return []
    ids = dict(zip(unique, tokenizer(unique, add_special_tokens=False, verbose=False).input_ids, strict=True))
    return [ids[text] for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation]) -> list[list[int]]:
    """Return the token ids of conversations under the tokenizer's chat template, up to where the answer begins.

    What the assistant thought before the user's last message is left out, as in training (`choose_reasoning`).
    """
    asked = (choose_reasoning(prompt, "last_turn")[0] for prompt in prompts)
    return encode_texts(tokenizer, [render_prompt(tokenizer, prompt) for prompt in asked])


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
    a tokenizer joins the template's newline with one that a response begins with, each piece is encoded by itself, as
    it stands behind other text: so does generation, which continues a prompt that ends at the cut.
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
            first, *rest = _split(text, text_cuts)
            pieces.append([*encode_texts(tokenizer, [first]), *(encode_behind(tokenizer, piece) for piece in rest)])
    return pieces


def encode_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that stands behind another one.

    A tokenizer of SentencePiece's kind puts a space before each text that it is given, so this one is given behind a
    character that no token joins with it, and that is cut off. Raises UsageError where no such character is found.
    """
    for anchor in _ANCHORS:
        before, both = tokenizer([anchor, anchor + text], add_special_tokens=False, verbose=False).input_ids
        ids: list[int] = both[len(before) :]
        if both[: len(before)] == before and _decoded(tokenizer, [*before, *ids]) == _decoded(tokenizer, before) + text:
            return ids
    (ids,) = encode_texts(tokenizer, [text])
    if _decoded(tokenizer, ids) != text:
        raise UsageError(
            f"the tokenizer does not give back {text[:40]!r} behind a prompt that ends within a token; end the prompt "
            "where a word ends"
        )
    return ids


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _split(sequence: Pieces, cuts: Sequence[int]) -> list[Pieces]:
    bounds = [0, *cuts, len(sequence)]
    return [sequence[start:end] for start, end in itertools.pairwise(bounds)]
