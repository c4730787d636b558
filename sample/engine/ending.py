"""Where a sample ends: at an end token, or at the first of its stop texts; and what it then says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat.reasoning import decode_marked, read_reply
from posttrain.models.declared import end_token_ids

MARGIN = 8
"""Tokens looked at besides those of a stop text: special tokens have no text, and the first of the tokens may lose a
space or half a character that it has behind others."""


class Said(TypedDict):
    """The fields of a `Sample` that say what its tokens mean."""

    text: str
    reasoning: str
    reasoning_tokens: int
    answered: bool
    whole: str | None


class Ending:
    """The end tokens and stop texts of a request, and the text that they leave."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: frozenset[int], stop: Sequence[str], min_tokens: int = 0
    ) -> None:
        """A stop text within the first ``min_tokens`` tokens is text like any other."""
        special, self.stop = special_stops(tokenizer, stop)
        self.min_tokens = min_tokens
        self.tokenizer, self.tokens = tokenizer, tokens.union(special)
        # Every token of text has a byte at least, so a stop text that has just come lies within as many tokens as it
        # has bytes. It is looked for there first: to decode everything at every token would take quadratic time.
        self.window = max((len(text.encode()) for text in self.stop), default=0) + MARGIN

    def reached(self, tokens: Sequence[int]) -> bool:
        """Return whether a sample ends with its last token."""
        if len(tokens) <= self.min_tokens and self.min_tokens:
            return False
        if tokens[-1] in self.tokens:
            return True
        if not self.stop or not any(text in self._plain(tokens[-self.window :]) for text in self.stop):
            return False
        text = self._plain(tokens)
        return self._before_stop(text, tokens, self._plain) != text

    def said(self, prompt: Sequence[int], tokens: Sequence[int]) -> Said:
        """Return what a sample says in answer to a prompt, without end tokens, up to the first stop text."""
        text = self._before_stop(self._marked(tokens), tokens, self._marked)
        return said(self.tokenizer, prompt, text)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a sample as one piece, without special and end tokens: that of a document."""
        return self._before_stop(self._plain(tokens), tokens, self._plain)

    def _before_stop(self, text: str, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """Return a text up to the first stop text that does not come too early."""
        if not self.stop:
            return text
        early = len(decode(tokens[: self.min_tokens])) if self.min_tokens else 0
        places = (text.find(stop, max(0, early - len(stop) + 1)) for stop in self.stop)
        return text[: min((place for place in places if place >= 0), default=len(text))]

    def _plain(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(self._kept(tokens), skip_special_tokens=True)
        return text

    def _marked(self, tokens: Sequence[int]) -> str:
        return decode_marked(self.tokenizer, self._kept(tokens))

    def _kept(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token not in self.tokens]


def said(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str) -> Said:
    """Return what a response says in answer to a prompt, given its text with the marks of reasoning."""
    reply = read_reply(tokenizer, prompt, text)
    thought = tokenizer(reply.reasoning, add_special_tokens=False).input_ids if reply.reasoning else []
    return Said(
        text=reply.answer,
        reasoning=reply.reasoning,
        reasoning_tokens=len(thought),
        answered=reply.finished,
        whole=text if text != reply.answer else None,
    )


def whole(text: str) -> Said:
    """Return what a response says that is an answer from its beginning to its end."""
    return Said(text=text, reasoning="", reasoning_tokens=0, answered=True, whole=None)


def special_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the special tokens among stop texts, and the other texts.

    The text of a sample is looked at without special tokens, so one of them is only met as a token.
    """
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [special[text] for text in stop if text in special], [text for text in stop if text not in special]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a sample: the tokenizer's EOS and those of the model's generation config."""
    return frozenset(end_token_ids(tokenizer.eos_token_id, model.generation_config.eos_token_id))
