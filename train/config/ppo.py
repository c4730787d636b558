"""Knobs of proximal policy optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import schema, speed
from posttrain.train.config.rollout import RolloutConfig


@schema
class KlConfig:
    """The pull towards the reference, which is the model that PPO starts from."""

    coef: float = Field(default=0.05, ge=0)
    """What a nat of KL costs."""
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
    """Weight of the value loss beside the policy's."""
    clip_range: float | None = Field(default=0.2, gt=0)
    """How far a value counts as moved from that of the rollout; None does not clip."""


@schema
class PpoConfig(RolloutConfig):
    """Proximal policy optimisation (Schulman et al. 2017) of responses."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """Who samples: the stage itself, or a vLLM server that gets the weights before every rollout (docs/ppo.md)."""
    server: str = speed("http://127.0.0.1:8000")
    """vllm: the root of the server's address."""
    server_logprobs: Literal["raw", "processed"] = "raw"
    """vllm: what its log-probabilities are of: the model itself, or, where the server runs with ``--logprobs-mode
    processed_logprobs``, what a token was drawn from. Temperatures other than 1 need the latter."""
    importance_cap: float = Field(default=2.0, ge=1)
    """vllm: largest weight of a token for what its log-probabilities differ between server and trainer."""
    ppo_epochs: int = Field(default=4, ge=1)
    """Passes over the responses of a rollout."""
    whiten_rewards: bool = False
    """Give the tokens' rewards unit variance over a rollout."""
    kl: KlConfig = Field(default_factory=KlConfig)
    """The pull towards the reference."""
    critic: CriticConfig = Field(default_factory=CriticConfig)
    """The value model."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a reward per token between it and what it is credited to."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation (Schulman et al. 2016): 0 trusts the critic, 1 the rewards."""
    whiten_advantages: bool = True
    """Give advantages zero mean and unit variance over a rollout."""
    clip_range: float = Field(default=0.2, gt=0)
    """How far from 1 a ratio of probabilities still counts."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Most that a token of negative advantage loses, in multiples of it (Ye et al. 2020); None has no limit."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy of the policy's next tokens, which keeps it from settling early."""

    @model_validator(mode="after")
    def _server_says_what_it_drew_from(self) -> PpoConfig:
        if self.backend == "vllm" and self.temperature != 1 and self.server_logprobs == "raw":
            raise ValueError(
                f"temperature={self.temperature}: a vLLM server gives the log-probabilities of temperature 1 unless it "
                "runs with --logprobs-mode processed_logprobs; start it so and set server_logprobs=processed, or set "
                "temperature=1"
            )
        return self
