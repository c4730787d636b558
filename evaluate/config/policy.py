"""Knobs of the evaluation of a policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.schema import external_function, schema, speed


@schema
class PartConfig:
    """Part of a suite: some of the items, and what of how they are asked and scored is not as the stage's knobs say."""

    tasks: list[str] = Field(default_factory=list)
    """Tasks of its items; empty is all."""
    languages: list[str] = Field(default_factory=list)
    """Languages of its items; empty is all."""
    scorers: list[str] = Field(default_factory=list)
    """Scorers that its items name; empty is all."""
    scorer: str | None = None
    """Instead of what the items name, such as ``choice_logprob``; it has to be able to read their references."""
    system: str | None = None
    """System turn of items that have none."""
    few_shot: int | None = Field(default=None, ge=0, le=64)
    """Answered examples before each item."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a response."""
    sampling: SamplingConfig | None = None
    """How responses are drawn, instead of by the stage's knobs, such as ``${sampling}``; how long they get is up to
    ``max_new_tokens`` alone."""
    label: str | None = Field(default=None, min_length=1)
    """Stands behind the names of its tasks and items, which may then be in another part as well."""


@schema
class ServerConfig:
    """A server that has the model, and speaks OpenAI's ``/v1/completions``."""

    url: str = speed("http://localhost:8000")
    """Its root, without ``/v1``."""
    model: str | None = speed(None)
    """What it calls the model; None is the stage that made it, as ``posttrain serve`` does."""
    dialect: Literal["vllm", "transformers"] = "vllm"
    """What it is; the log-probabilities of vLLM tell whether it has this model's weights."""
    max_concurrent: int = speed(64, ge=1)
    """Responses that are asked for at once; transformers gets one at a time."""


@schema
class PolicyEvaluationConfig:
    """Scores one policy: held-out loss, and responses to evaluation items."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Most tokens of a response."""
    num_samples: int = Field(default=1, ge=1, le=1024)
    """Responses to each item: with several, pass@k and majority vote are told, and exact match is their mean."""
    temperature: float = Field(default=0.0, ge=0)
    """Of sampling; 0 takes the most likely token, of which there is one response alone."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the fewest tokens that hold this probability."""
    system: str | None = None
    """System turn of items that have none."""
    few_shot: int = Field(default=0, ge=0, le=64)
    """Answered examples before each item: training items of the same task and language."""
    function: str | None = external_function()
    """Instead of the items' scorers: ``package.module:function``; it gets prompt (messages), response and reference,
    and returns a number from 0 to 1."""
    suite: dict[str, PartConfig] = Field(default_factory=dict)
    """Parts by name, all answered in one load of the model; items that are in none are asked as the knobs beside say.
    ``suite=NAME`` composes one of ``conf/suite``."""
    server: ServerConfig | None = None
    """Let a server that has the model answer; ``server.url=…`` is enough. The model is loaded here all the same, for
    held-out loss, options, and to tell whether the server has its weights."""
    max_items: int | None = Field(default=None, ge=1)
    """Evaluate at most this many items, taken evenly over tasks and languages."""
    batch_size: int = speed(64, ge=1)
    """Responses that run at once."""
    batch_tokens: int | None = speed(None, ge=1)
    """Fewer run at once where prompts and ``max_new_tokens`` add up to more than this; None is no limit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""

    @model_validator(mode="after")
    def _samples_differ(self) -> PolicyEvaluationConfig:
        _require_different("", self.num_samples, self.temperature)
        for name, part in self.suite.items():
            if part.sampling is not None and part.sampling.num_beams == 1:
                _require_different(f"suite.{name}.sampling: ", part.sampling.num_samples, part.sampling.temperature)
        return self


def _require_different(where: str, samples: int, temperature: float) -> None:
    if samples > 1 and temperature == 0:
        raise ValueError(f"{where}num_samples={samples}: at temperature=0 they are all alike; raise it")
