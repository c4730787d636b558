"""Knobs of rollouts and of the rewards that they are given: what PPO, RLOO and GRPO have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.sample.config.judge import JudgeModelConfig
from posttrain.stage.schema import external, external_function, schema, speed
from posttrain.train.config.common import TrainingConfig


@schema
class RewardTerm:
    """One component of the reward; the reward of a response is the weighted sum of all of them."""

    kind: Literal[
        "reward_model",
        "verifier",
        "scorer",
        "regex",
        "json_schema",
        "constraints",
        "python",
        "grounding",
        "judge",
        "length",
    ]
    """What judges a response."""
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    """Under which its mean is logged; None is its kind."""
    weight: float = 1.0
    """What the component is multiplied by."""
    clip: float | None = Field(default=None, gt=0)
    """Cut the component to ± this before it is weighted."""
    normalize: bool = True
    """reward_model: subtract the mean and divide by the standard deviation that its artifact holds."""
    ensemble: EnsembleConfig = Field(default_factory=EnsembleConfig)
    """reward_model: how several become one reward; they are ``inputs.reward`` and ``inputs.reward_NAME``."""
    scorer: str | None = None
    """scorer: one of `posttrain.data.checks.scorers`; None is the prompt's own."""
    pattern: str | None = None
    """regex: 1 where it is found in the response, else 0."""
    schema_file: str | None = external()
    """json_schema: 1 where the whole response is a JSON document that this JSON Schema accepts, else 0."""
    function: str | None = external_function()
    """python: ``package.module:function``; it gets prompt (messages), response and reference, and returns a number."""
    judge: JudgeModelConfig | None = None
    """judge: the model that grades each response by its rubric, 0 to 1; its ``cache`` must be given."""
    max_tokens: int | None = Field(default=None, ge=1)
    """length: 0 up to this many tokens, then down to −1 at twice as many."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> RewardTerm:
        needs = {
            "regex": "pattern",
            "json_schema": "schema_file",
            "python": "function",
            "judge": "judge",
            "length": "max_tokens",
        }
        for kind, knob in needs.items():
            given = getattr(self, knob) is not None
            if given != (self.kind == kind):
                raise ValueError(f"{knob} is for kind={kind}, which needs it; this term's kind is {self.kind}")
        if self.scorer is not None and self.kind != "scorer":
            raise ValueError(f"scorer is for kind=scorer; this term's kind is {self.kind}")
        if self.judge is not None and self.judge.cache is None:
            raise ValueError("judge.cache is null: a run that resumes must find the same grades; give a file")
        return self


@schema
class AlarmConfig:
    """What counts as a collapse; it stops the stage, and the last good checkpoint stays. None is no alarm."""

    max_kl: float | None = Field(default=None, gt=0)
    """KL to the reference per response, in nats."""
    min_entropy: float | None = Field(default=None, gt=0)
    """Mean surprise of sampled tokens, in nats."""
    max_length_growth: float | None = Field(default=None, gt=1)
    """Mean response length over that of the first rollout."""


@schema
class RolloutConfig(TrainingConfig):
    """What methods have in common that learn from their own responses.

    `global_batch_size` is the number of responses of one optimizer step, a mini-batch; `epochs` are passes over the
    prompts.
    """

    rollout_batch_size: int = Field(default=256, ge=1)
    """Responses sampled before each round of updates: a multiple of `global_batch_size` and `samples_per_prompt`."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses to each prompt of a rollout."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of a response."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of the log-probabilities that are optimised."""
    rollout_batch: int = speed(64, ge=1)
    """Responses that one process samples at once."""
    scoring_tokens: int = speed(16384, ge=64)
    """Tokens of a forward pass of the frozen models."""
    rewards: list[RewardTerm] = Field(default_factory=lambda: [RewardTerm(kind="reward_model")], min_length=1)
    """The components that are added up."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Taken from the reward of a response that does not end by itself."""
    early_stop_kl: float | None = Field(default=None, gt=0)
    """Go on to the next rollout when a step moved the policy by more than this (`policy/approxkl`)."""
    alarms: AlarmConfig = Field(default_factory=AlarmConfig)
    """What counts as a collapse and stops the stage."""
    sample_rows: int = speed(4, ge=0)
    """Responses of each rollout that are kept for people in `samples.jsonl`."""

    @model_validator(mode="after")
    def _batches_divide(self) -> RolloutConfig:
        for name in ("global_batch_size", "samples_per_prompt"):
            size = getattr(self, name)
            if self.rollout_batch_size % size:
                raise ValueError(
                    f"rollout_batch_size={self.rollout_batch_size} is not a multiple of {name}={size}; "
                    f"use {self.rollout_batch_size // size * size or size}"
                )
        return self

    @model_validator(mode="after")
    def _has_nothing_held_out(self) -> RolloutConfig:
        if self.eval_steps is not None:
            raise ValueError(
                f"eval_steps={self.eval_steps}: prompts are not held out, every rollout is scored as it is; leave it "
                "out, and let evaluate.policy judge the result"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_was_run(self) -> RolloutConfig:
        if self.optimizer.kind == "muon":
            raise ValueError("optimizer.kind=muon: not for stages that learn from their own responses; use adamw")
        return self

    @property
    def mini_batches(self) -> int:
        """Optimizer steps per pass over a rollout."""
        return self.rollout_batch_size // self.global_batch_size
