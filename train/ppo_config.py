"""Knobs of PPO and of the rewards that it optimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from posttrain.stage.schema import external, external_function, schema, speed
from posttrain.train.config import TrainingConfig


@schema
class RewardTerm:
    """One component of the reward; the reward of a response is the weighted sum of all of them."""

    kind: Literal["reward_model", "scorer", "regex", "json_schema", "constraints", "python", "grounding", "length"]
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    """Under which its mean is logged; None is its kind."""
    weight: float = 1.0
    clip: float | None = Field(default=None, gt=0)
    """Cut the component to ± this before it is weighted."""
    normalize: bool = True
    """reward_model: subtract the mean and divide by the standard deviation that its artifact holds."""
    scorer: str | None = None
    """scorer: one of `posttrain.data.scorers`; None is the prompt's own."""
    pattern: str | None = None
    """regex: 1 where it is found in the response, else 0."""
    schema_file: str | None = external()
    """json_schema: 1 where the whole response is a JSON document that this JSON Schema accepts, else 0."""
    function: str | None = external_function()
    """python: ``package.module:function``; it gets prompt (messages), response and reference, and returns a number."""
    max_tokens: int | None = Field(default=None, ge=1)
    """length: 0 up to this many tokens, then down to −1 at twice as many."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> RewardTerm:
        needs = {"regex": "pattern", "json_schema": "schema_file", "python": "function", "length": "max_tokens"}
        for kind, knob in needs.items():
            given = getattr(self, knob) is not None
            if given != (self.kind == kind):
                raise ValueError(f"{knob} is for kind={kind}, which needs it; this term's kind is {self.kind}")
        if self.scorer is not None and self.kind != "scorer":
            raise ValueError(f"scorer is for kind=scorer; this term's kind is {self.kind}")
        return self


@schema
class KlConfig:
    """The pull towards the reference, which is the model that PPO starts from."""

    coef: float = Field(default=0.05, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Schulman (2020), "Approximating KL divergence"."""
    place: Literal["reward", "loss"] = "reward"
    """A part of every token's reward, or a term of the loss."""
    target: float | None = Field(default=None, gt=0)
    """Adapt the coefficient to this KL per response, in nats (Ziegler et al. 2019, sec. 2.2); None keeps it."""
    horizon: int = Field(default=10000, ge=1)
    """Responses over which the coefficient adapts."""

    @model_validator(mode="after")
    def _k1_is_for_rewards(self) -> KlConfig:
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError("estimator=k1 in the loss has an expected gradient of zero; use k2 or k3, or place=reward")
        return self


@schema
class CriticConfig:
    """The value model."""

    kind: Literal["reward_model", "policy", "shared"] = "reward_model"
    """Starts from the reward model, or from a copy of the policy with a head of zeros; or is a head on the policy."""
    learning_rate: float | None = Field(default=None, gt=0)
    """None is the policy's."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps at the start in which only the critic learns."""
    loss_coef: float = Field(default=0.5, gt=0)
    clip_range: float | None = Field(default=0.2, gt=0)


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
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of the log-probabilities that are optimised."""
    rollout_batch: int = speed(64, ge=1)
    """Responses that one process samples at once."""
    scoring_tokens: int = speed(16384, ge=64)
    """Tokens of a forward pass of the frozen models."""
    rewards: list[RewardTerm] = Field(default_factory=lambda: [RewardTerm(kind="reward_model")], min_length=1)
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Taken from the reward of a response that does not end by itself."""
    early_stop_kl: float | None = Field(default=None, gt=0)
    """Go on to the next rollout when a step moved the policy by more than this (`policy/approxkl`)."""
    alarms: AlarmConfig = Field(default_factory=AlarmConfig)
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

    @property
    def mini_batches(self) -> int:
        """Optimizer steps per pass over a rollout."""
        return self.rollout_batch_size // self.global_batch_size


@schema
class PpoConfig(RolloutConfig):
    """Proximal policy optimisation (Schulman et al. 2017) of responses."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """Who samples: the stage itself, or a vLLM server that gets the weights before every rollout (docs/ppo.md)."""
    server: str = speed("http://127.0.0.1:8000")
    """vllm: the root of the server's address."""
    importance_cap: float = Field(default=2.0, ge=1)
    """vllm: largest weight of a token for what its log-probabilities differ between server and trainer."""
    ppo_epochs: int = Field(default=4, ge=1)
    """Passes over the responses of a rollout."""
    whiten_rewards: bool = False
    """Give the tokens' rewards unit variance over a rollout."""
    kl: KlConfig = Field(default_factory=KlConfig)
    critic: CriticConfig = Field(default_factory=CriticConfig)
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    whiten_advantages: bool = True
    clip_range: float = Field(default=0.2, gt=0)
    dual_clip: float | None = Field(default=None, gt=1)
    entropy_coef: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _server_says_what_it_drew_from(self) -> PpoConfig:
        if self.backend == "vllm" and self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature}: a vLLM server gives the log-probabilities of temperature 1 alone; "
                "set temperature=1, or backend=transformers"
            )
        return self
