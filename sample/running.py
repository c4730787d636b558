"""One sample while it is being generated."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from posttrain.sample.constraint import Bitmask, Constraint
from posttrain.sample.sampling import FinishReason, Sample, SamplingParams
from posttrain.sample.uniforms import redraw_uniforms, sample_key, uniforms


class Running:
    """The tokens of a sample so far, and whether they have come to an end."""

    def __init__(
        self,
        prompt: Sequence[int],
        number: int,
        index: int,
        params: SamplingParams,
        ends: frozenset[int],
        tokenizer: PreTrainedTokenizerBase,
        constraint: Constraint | None,
    ) -> None:
        """``number`` is the prompt's and ``index`` the sample's among those of the prompt."""
        self.number, self.index = number, index
        self.params = params
        self.prompt = prompt
        self.ends = ends
        self.tokenizer = tokenizer
        self.constraint = constraint
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampling_logprobs: list[float] = []
        self.forced: deque[int] = deque(constraint.forced() if constraint is not None else ())
        self.reason: FinishReason | None = None
        self.started = time.perf_counter()
        self.key = sample_key(params.seed, prompt, index)
        self.uniforms = uniforms(self.key, params.max_tokens)

    @property
    def tokens_left(self) -> int:
        """How many tokens may still come."""
        return self.params.max_tokens - len(self.tokens)

    @property
    def draws_under_constraint(self) -> bool:
        """Whether the next token is drawn from what a constraint allows."""
        return self.constraint is not None and not self.forced

    def draws(self, attempt: int) -> NDArray[np.float64]:
        """Return the uniforms of the next token; ``attempt`` counts its draws that were refused."""
        position = len(self.tokens)
        return redraw_uniforms(self.key, position, attempt) if attempt else self.uniforms[position]

    def fill(self, bitmask_W: Bitmask) -> None:
        """Set the bits of the tokens that the constraint allows next."""
        assert self.constraint is not None
        self.constraint.fill(bitmask_W, self.tokens_left)

    def take(self, token: int) -> bool:
        """Let the constraint take the next token; return whether it did, and note what it then forces."""
        if self.constraint is None:
            return True
        if self.forced:
            self.forced.popleft()
        if not self.constraint.advance(token):
            return False
        if not self.forced:
            self.forced.extend(self.constraint.forced())
        return True

    def append(self, token: int, logprob: float, sampling_logprob: float) -> None:
        """Note a token, and the reason when it is the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.sampling_logprobs.append(sampling_logprob)
        if token in self.ends or (self.constraint is not None and self.constraint.ended) or self._stop_text_came():
            self.reason = "stop"
        elif not self.tokens_left:
            self.reason = "length"

    def sample(self) -> Sample:
        """Return what has been generated."""
        return Sample(
            token_ids=self.tokens,
            logprobs=self.logprobs,
            sampling_logprobs=self.sampling_logprobs,
            finish_reason=self.reason or "aborted",
            text=before_stop(self._text(self.tokens), self.params.stop),
            seconds=time.perf_counter() - self.started,
        )

    def _stop_text_came(self) -> bool:
        if not self.params.stop:
            return False
        # Every token of text has a byte at least, so the latest stop text lies within as many tokens as it has bytes.
        # Only there is it looked for first: decoding everything at every token would take quadratic time.
        window = max(len(stop.encode()) for stop in self.params.stop) + MARGIN
        if not holds_stop(self._text(self.tokens[-window:]), self.params.stop):
            return False
        return holds_stop(self._text(self.tokens), self.params.stop)

    def _text(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self.ends]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text


MARGIN = 8
"""Tokens looked at besides those of a stop text: special tokens have no text, and the first of the tokens may lose a space
or half a character that it has behind others."""


def holds_stop(text: str, stops: Sequence[str]) -> bool:
    """Return whether a text holds one of the stop texts."""
    return any(stop in text for stop in stops)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of its stop texts."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
