"""Knobs of sampling, of which `conf/sampling/` has presets."""

from __future__ import annotations

from pydantic import Field, model_validator

from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import schema


@schema
class SamplingConfig:
    """How responses are drawn; `SamplingParams` says what each knob does."""

    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of a response."""
    temperature: float = Field(default=1.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the fewest tokens that hold this probability."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many of the most likely tokens; 0 among all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Sample among tokens with at least this share of the most likely token's probability."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Divides positive and multiplies negative logits of tokens that were there; 1 is off."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the response has, once."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logit of a token as often as the response has it."""
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Added to the logit of a token, by its id."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end a response and are cut from it."""
    min_tokens: int = Field(default=0, ge=0)
    """Nothing ends a response before it has so many tokens."""
    num_samples: int = Field(default=1, ge=1)
    """Responses to each prompt."""
    num_beams: int = Field(default=1, ge=1)
    """More than 1 searches instead of sampling, and needs temperature 0."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability divided by its tokens to this power."""
    top_logprobs: int = Field(default=0, ge=0)
    """Most likely tokens that are given at each place, with their log-probabilities."""
    seed: int | None = None
    """None takes the seed of the stage."""

    @model_validator(mode="after")
    def _makes_params(self) -> SamplingConfig:
        try:
            sampling_params(self, 0)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self


def sampling_params(config: SamplingConfig, seed: int) -> SamplingParams:
    """Return a request's parameters; ``seed`` is the stage's, for where the configuration has none."""
    return SamplingParams(
        max_tokens=config.max_tokens,
        repetition_penalty=config.repetition_penalty,
        presence_penalty=config.presence_penalty,
        frequency_penalty=config.frequency_penalty,
        logit_bias=dict(config.logit_bias),
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        stop=tuple(config.stop),
        min_tokens=config.min_tokens,
        num_samples=config.num_samples,
        seed=seed if config.seed is None else config.seed,
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
        top_logprobs=config.top_logprobs,
    )
