"""One sample while it is being generated."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posttrain.sample.engine.ending import Ending, Said, whole
from posttrain.sample.engine.uniforms import BLOCK, DRAWS, redraw_uniforms, sample_key, uniforms
from posttrain.sample.sampling import FinishReason, Sample, SamplingParams
from posttrain.sample.structured.constraint import Bitmask, Constraint


class Running:
    """The tokens of a sample so far, and whether they have come to an end."""

    def __init__(
        self,
        prompt: Sequence[int],
        number: int,
        index: int,
        params: SamplingParams,
        ending: Ending,
        constraint: Constraint | None,
    ) -> None:
        """``number`` is the prompt's and ``index`` the sample's among those of the prompt."""
        self.number, self.index = number, index
        self.params = params
        self.prompt = prompt
        self.ending = ending
        self.constraint = constraint
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampling_logprobs: list[float] = []
        self.top_tokens: list[list[int]] = []
        self.top_logprobs: list[list[float]] = []
        self.forced: deque[int] = deque(constraint.forced() if constraint is not None else ())
        self.reason: FinishReason | None = None
        self.started = time.perf_counter()
        self.key = sample_key(params.seed, prompt, index)
        self.block = -1
        self.uniforms: NDArray[np.float64] = np.empty((0, DRAWS))

    @property
    def tokens_left(self) -> int:
        """How many tokens may still come."""
        return self.params.max_tokens - len(self.tokens)

    @property
    def too_early(self) -> bool:
        """Whether the next token must not end the sample."""
        return len(self.tokens) < self.params.min_tokens

    @property
    def draws_under_constraint(self) -> bool:
        """Whether the next token is drawn from what a constraint allows."""
        return self.constraint is not None and not self.forced

    def draws(self, attempt: int) -> NDArray[np.float64]:
        """Return the uniforms of the next token; ``attempt`` counts its draws that were refused."""
        if attempt:
            return redraw_uniforms(self.key, len(self.tokens), attempt)
        block, place = divmod(len(self.tokens), BLOCK)
        if block != self.block:
            self.block, self.uniforms = block, uniforms(self.key, block)
        drawn: NDArray[np.float64] = self.uniforms[place]
        return drawn

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
        if self.ending.reached(self.tokens) or (self.constraint is not None and self.constraint.ended):
            self.reason = "stop"
        elif not self.tokens_left:
            self.reason = "length"

    def note(self, tokens: list[int], logprobs: list[float]) -> None:
        """Note the most likely tokens of the place whose token comes next, as many as are asked for."""
        self.top_tokens.append(tokens[: self.params.top_logprobs])
        self.top_logprobs.append(logprobs[: self.params.top_logprobs])

    def sample(self) -> Sample:
        """Return what has been generated."""
        return Sample(
            token_ids=self.tokens,
            logprobs=self.logprobs,
            sampling_logprobs=self.sampling_logprobs,
            finish_reason=self.reason or "aborted",
            seconds=time.perf_counter() - self.started,
            top_tokens=self.top_tokens[: len(self.tokens)],  # of forced tokens more may be noted than taken
            top_logprobs=self.top_logprobs[: len(self.tokens)],
            **self._said(),
        )

    def _said(self) -> Said:
        if self.constraint is not None:  # a document from its first token on, whatever its texts quote
            return whole(self.ending.text(self.tokens))
        return self.ending.said(self.prompt, self.tokens)
