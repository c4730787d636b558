"""What a sampler is asked for, and what it gives back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from posttrain.stage.errors import UsageError

FinishReason = Literal["stop", "length", "aborted"]
"""Ended by EOS, a stop token or a stop string; cut at ``max_tokens``; cancelled because a sibling was accepted."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled.

    The knobs act in the order of the fields: penalty and bias on the logits, then temperature, top-k, top-p among what
    top-k left, and min-p among what top-p left, as in transformers.
    """

    max_tokens: int = 256
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens of the prompt and the sample (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the sample has, once."""
    frequency_penalty: float = 0.0
    """Subtracted from them as often as the sample has the token."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logit of a token."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 among all."""
    top_p: float = 1.0
    """Sample among the fewest tokens that hold this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Sample among tokens with at least this share of the most likely token's probability (Nguyen et al. 2025)."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; they are cut from its text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a sample, besides EOS."""
    min_tokens: int = 0
    """Nothing ends a sample before it has so many tokens, as in transformers and vLLM."""
    num_samples: int = 1
    seed: int = 0
    num_beams: int = 1
    """Beam search over this many continuations instead of sampling; needs temperature 0."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability divided by its tokens to this power."""
    top_logprobs: int = 0
    """Most likely tokens that are noted at each place, with their log-probabilities under the model itself."""

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range."""
        limits = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, f"in [0, max_tokens={self.max_tokens}]"),
            "top_logprobs": (self.top_logprobs >= 0, "at least 0"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "num_samples": (self.num_samples >= 1, "at least 1"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
        }
        for name, (fits, limit) in limits.items():
            if not fits:
                raise UsageError(f"{name}={getattr(self, name)}: must be {limit}")
        if nan := [token for token, bias in self.logit_bias.items() if bias != bias or bias == math.inf]:
            raise UsageError(f"logit_bias of token {nan[0]}: must be a number, or minus infinity to forbid the token")
        if "" in self.stop:
            raise UsageError("stop: an empty text would end every sample at once; leave it out")
        turned = (self.temperature, self.repetition_penalty != 1, self.logit_bias, self.presence_penalty)
        if self.num_beams > 1 and any((*turned, self.frequency_penalty, self.min_tokens, self.top_logprobs)):
            raise UsageError(
                f"num_beams={self.num_beams}: beam search follows the model alone; set temperature=0 and leave "
                "penalties, logit_bias, min_tokens and top_logprobs at their defaults"
            )
        if 1 < self.num_beams < self.num_samples:
            raise UsageError(f"num_samples={self.num_samples}: {self.num_beams} beams give no more than that many")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    token_ids: list[int]
    """With the token that ended it, when it was sampled."""
    logprobs: list[float]
    """Log-probability of each token under the model itself: no temperature, no knob."""
    sampling_logprobs: list[float]
    """Log-probability of each token under the distribution that it was drawn from; 0 when greedy or forced."""
    finish_reason: FinishReason
    text: str
    """The answer: what stands behind the reasoning, without special tokens, cut before a stop text."""
    seconds: float
    """Wall time from the forward over its prompt to its end, other samples of the batch included."""
    reasoning: str = ""
    """What was thought before the answer."""
    reasoning_tokens: int = 0
    """Tokens of the reasoning by itself."""
    answered: bool = True
    """Whether the reasoning, where there is any, came to its end; if not, there is no answer."""
    whole: str | None = None
    """The response with its reasoning and the marks that set it apart; None where it is `text`."""
    top_tokens: list[list[int]] = dataclasses.field(default_factory=list)
    """The most likely tokens at each place, falling, where they were asked for."""
    top_logprobs: list[list[float]] = dataclasses.field(default_factory=list)
    """Their log-probabilities under the model itself."""

    @property
    def ended(self) -> bool:
        """Whether the model ended its turn, with an answer, rather than being cut."""
        return self.finish_reason == "stop" and self.answered

    @property
    def response(self) -> str:
        """All that was said, reasoning included."""
        return self.text if self.whole is None else self.whole


Prompts = Sequence[Sequence[int]]
"""Token ids of prompts."""
Score = Callable[[Prompts, Sequence[Sequence[Sample]]], list[list[float]]]
"""Scores every sample of every prompt; the higher the better. `posttrain.sample.score` has that of a reward model."""
Accept = Callable[[int, Sample], bool]
"""Called with a prompt's number and a sample of it that ended; True cancels the prompt's other samples."""
OnToken = Callable[[int, int, int], None]
"""Called with a prompt's number, its sample's number and a token."""


class Generates(Protocol):
    """What can sample."""

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        """Return the samples of each prompt; a sample that is accepted cancels those of its prompt that still run."""
        ...
