"""Knobs of generating demonstrations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.schema import external, external_function, schema, speed

Choose = Literal["all", "first_valid", "logprob", "reward", "verifier", "vote"]


@schema
class StructureConfig:
    """What every response must be; at most one of these."""

    schema: str | None = external()
    """File of a JSON Schema, of which each response is a document."""
    regex: str | None = None
    """Regular expression that the whole response matches."""
    choices: list[str] = Field(default_factory=list)
    """Texts, of which each response is one."""
    grammar: str | None = None
    """``sql`` or ``yaml``, or a grammar itself in Lark's syntax, of several lines."""

    @model_validator(mode="after")
    def _one_of_them(self) -> StructureConfig:
        if len(given := self.given()) > 1:
            raise ValueError(f"{' and '.join(kind for kind, _ in given)}: a response has one structure; give one")
        if any("," in choice for choice in self.choices):
            raise ValueError("choices: a comma ends a choice; say it as a regex")
        return self

    def given(self) -> list[tuple[str, str]]:
        """Return kind and value of what is given, as `posttrain.sample.structured.named` takes them."""
        values = {
            "schema": self.schema,
            "regex": self.regex,
            "choices": ",".join(self.choices),
            "grammar": self.grammar,
        }
        return [(kind, value) for kind, value in values.items() if value]


@schema
class GenerateConfig:
    """Responses of a model to prompts, as demonstrations to learn from: synthesis, distillation, best of N."""

    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How responses are drawn, ``num_samples`` to each prompt; such as ``${sampling}``."""
    structure: StructureConfig = Field(default_factory=StructureConfig)
    """What every response must be."""
    choose: Choose = "all"
    """Keep every response of a prompt, or one: the first that is valid, which ends the others, the one of the highest
    log-probability, reward (with ``inputs.reward_model``) or score of the verifier, or the answer of most votes."""
    scorer: str | None = None
    """Verifier: one of `posttrain.data.checks.scorers`; None is the prompt's own, where it has one."""
    function: str | None = external_function()
    """Verifier instead of a scorer: ``package.module:function``; it gets prompt (messages), response and reference, and
    returns a number."""
    min_score: float | None = None
    """Drop responses whose verifier gives them less."""
    reasoning: Literal["keep", "strip"] = "keep"
    """Whether what was thought before an answer is part of the demonstration."""
    license: str | None = None
    """Licence of the responses, where the model's terms set one; None is that of each prompt."""
    batch_size: int = speed(128, ge=1)
    """Samples that run at once."""
    batch_tokens: int | None = speed(None, ge=1)
    """Fewer run at once where prompts and ``sampling.max_tokens`` add up to more than this; None is no limit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""

    @property
    def verifies(self) -> bool:
        """Whether a verifier is asked."""
        return self.choose == "verifier" or self.min_score is not None

    @model_validator(mode="after")
    def _goes_together(self) -> GenerateConfig:
        if self.scorer is not None and self.function is not None:
            raise ValueError(f"scorer={self.scorer} and function={self.function}: give one of them")
        named = self.scorer or self.function
        if named is not None and not self.verifies and not (self.choose == "vote" and self.function is None):
            raise ValueError(f"{named}: nothing is judged; give choose=verifier, or min_score")
        if self.choose != "all" and self.sampling.num_samples == 1:
            raise ValueError(f"choose={self.choose}: one sample leaves no choice; raise sampling.num_samples")
        if self.sampling.num_samples > 1 and self.sampling.temperature == 0 and self.sampling.num_beams == 1:
            raise ValueError(
                f"sampling.num_samples={self.sampling.num_samples}: at temperature=0 all are alike; raise it"
            )
        if self.sampling.num_beams > 1 and (self.structure.given() or self.choose == "first_valid"):
            raise ValueError("sampling.num_beams: beam search takes neither a structure nor first_valid; set it to 1")
        return self
