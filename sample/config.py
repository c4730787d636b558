"""Knobs of sampling, of which `conf/sampling/` has presets, and of the stage that ranks samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import external_function, schema, speed


@schema
class SamplingConfig:
    """How responses are drawn; `SamplingParams` says what each knob does."""

    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 is off."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    stop: list[str] = Field(default_factory=list)
    """Texts that end a response and are cut from it."""
    num_samples: int = Field(default=1, ge=1)
    num_beams: int = Field(default=1, ge=1)
    """More than 1 searches instead of sampling, and needs temperature 0."""
    length_penalty: float = 1.0
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
        logit_bias=dict(config.logit_bias),
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        stop=tuple(config.stop),
        num_samples=config.num_samples,
        seed=seed if config.seed is None else config.seed,
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
    )


@schema
class RankConfig:
    """Comparisons of a model's own responses: several samples of each prompt, ranked by a score."""

    num_samples: int = Field(default=4, ge=2)
    """Responses to each prompt."""
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    scorer: str | None = None
    """One of `posttrain.data.scorers`; None is the prompt's own."""
    function: str | None = external_function()
    """Instead of a scorer: ``package.module:function``; it gets prompt (messages), response and reference, and returns
    a number."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_judge(self) -> RankConfig:
        if self.scorer is not None and self.function is not None:
            raise ValueError(f"scorer={self.scorer} and function={self.function}: give one of them")
        return self
