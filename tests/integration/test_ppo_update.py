"""PPO's updates against an independent naive implementation.

It knows nothing of batches, padding or our loss functions: it goes over episodes one by one and over their tokens in
loops, from Schulman et al. (2016, 2017) and Ziegler et al. (2019), with AdamW (Loshchilov and Hutter 2019) and clipping
of gradients written out, in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from build_artifacts import build_model, build_prompts, build_reward_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.stage.artifact import Parent
from posttrain.stage.entry import Context
from posttrain.stage.schema import build, to_dict
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker
from posttrain.train.config.ppo import PpoConfig
from posttrain.train.engine.fit import fit
from posttrain.train.methods.ppo_episodes import finish_episodes
from posttrain.train.methods.ppo_trainer import PpoTrainer
from posttrain.train.ppo import actor_critic
from posttrain.train.rollouts.collect import Rollout
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rollouts.opening import collector_of, prepare

EPOCHS, MINI_BATCHES = 3, 2
KNOBS: dict[str, Any] = {
    "rollout_batch_size": 16,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "samples_per_prompt": 2,
    "ppo_epochs": EPOCHS,
    "max_steps": EPOCHS * MINI_BATCHES,
    "max_new_tokens": 12,
    "temperature": 0.8,
    "missing_eos_penalty": 0.5,
    "log_steps": 1,
    "optimizer": {"learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5, "warmup_fraction": 0.3},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "own_critic": {"kl": {"coef": 0.2}, "critic": {"learning_rate": 0.004}},
    "shared_critic": {
        "kl": {"coef": 0.2, "estimator": "k3", "place": "loss"},
        "critic": {"kind": "shared", "clip_range": None, "loss_coef": 0.1},
        "whiten_rewards": True,
        "gamma": 0.95,
        "entropy_coef": 0.02,
        "dual_clip": 1.1,
    },
    "critic_warmup": {
        "kl": {"coef": 0.2, "estimator": "k2"},
        "critic": {"kind": "policy", "warmup_steps": 2},
        "whiten_advantages": False,
    },
}

CLIPS = {"own_critic": ["policy", "value"], "shared_critic": ["policy", "dual"], "critic_warmup": ["policy", "value"]}


@dataclasses.dataclass
class Inputs:
    """Artifacts that PPO starts from."""

    root: Path
    model: Path
    prompts: Path
    reward: Path

    def paths(self) -> dict[str, Path]:
        return {"model": self.model, "data": self.prompts, "reward": self.reward}


@pytest.fixture(autouse=True)
def no_accelerator_stays() -> Iterator[None]:
    """Leave the process as it was: others fork it, and join groups of their own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("ppo")
    model = build_model(root)
    ending = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        ending.lm_head.weight[load_tokenizer(model).eos_token_id] *= 40  # or hardly any response would end by itself
    ending.save_pretrained(model)
    return Inputs(root, model, build_prompts(root, model), build_reward_model(root, model))


class RecordingTrainer(PpoTrainer):
    """Keeps what rollouts hold in float64, and notes which sequences each step has seen."""

    def collect(self) -> Rollout:
        rollout = super().collect()
        for episode in rollout.episodes:
            for name in ("logps", "reference_logps", "values"):
                setattr(episode, name, getattr(episode, name).astype(np.float64))
        finish_episodes(rollout.episodes, self.config, self.kl_coef)
        return rollout

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.seen = getattr(self, "seen", [])
        pad = self.pad_token_id
        rows = [tuple(token for token in row if token != pad) for row in inputs["input_ids"].tolist()]
        self.seen.append((self.state.global_step, rows))
        return super().compute_loss(model, inputs, *args, **kwargs)


def train(inputs: Inputs, config: PpoConfig, work: Path) -> RecordingTrainer:
    """Run one rollout and its updates with the weights of all models in float64."""
    spec = StageSpec(
        "ppo", "train.ppo", "test", "", "", to_dict(config), {}, dict[str, Parent](), str(work), str(work),
        str(work / "outcome"), 5, Distributed(), Tracking("disabled"),
    )  # fmt: skip
    work.mkdir(parents=True)
    context = Context(spec, inputs.paths(), work, work, NullTracker(), True)
    tokenizer = load_tokenizer(inputs.model)
    prepared = prepare(config, context, tokenizer, config.ppo_epochs, "train.ppo")
    assert prepared.reference is not None
    prepared.reference.model.double()
    model = actor_critic(config, context).double()
    trainer = RecordingTrainer(
        config=config,
        collector=collector_of(prepared, config, model.policy, spec.seed, rank=0),
        samples=prepared.samples,
        pad_token_id=tokenizer.pad_token_id,
        copy=None,
        plan=prepared.plan,
        context=context,
        keep_checkpoints=config.keep_checkpoints,
        model=model,
        args=TrainingArguments(**prepared.arguments, ignore_data_skip=True),
        train_dataset=prepared.prompts,
        processing_class=tokenizer,
    )
    fit(trainer, context, config)
    return trainer


class NaivePpo:
    """PPO as the papers have it, one episode at a time."""

    def __init__(self, inputs: Inputs, config: PpoConfig) -> None:
        self.config = config
        self.policy = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float64).eval()
        self.reference = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float64).eval()
        kind = config.critic.kind
        critic: Any = None
        if kind == "reward_model":
            critic = AutoModelForSequenceClassification.from_pretrained(inputs.reward, dtype=torch.float64).eval()
            self.trunk, self.head = critic.model, critic.score.weight
            self.mean, self.std = 0.25, 0.5  # the artifact's
        else:
            copy = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float64).eval()
            self.trunk = copy.model if kind == "policy" else self.policy.model
            self.head = torch.nn.Parameter(torch.zeros(1, 32, dtype=torch.float64))
            self.mean, self.std = 0.0, 1.0
        self.of_policy = dict(self.policy.named_parameters())
        self.of_critic = {"head": self.head}
        if kind != "shared":
            self.of_critic |= {f"trunk.{name}": p for name, p in self.trunk.named_parameters()}
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}
        self.clipped = {"policy": 0, "value": 0, "dual": 0}

    def read(self, episode: Episode, model: Any) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy of each response token."""
        ids = torch.tensor([episode.prompt_ids + episode.response_ids])
        logits = model(input_ids=ids).logits[0, len(episode.prompt_ids) - 1 : -1] / self.config.temperature
        log_probs = torch.log_softmax(logits, -1)
        chosen = torch.stack([log_probs[t, token] for t, token in enumerate(episode.response_ids)])
        return chosen, -(log_probs.exp() * log_probs).sum(-1)

    def value(self, episode: Episode) -> Tensor:
        """Return the value before each response token."""
        ids = torch.tensor([episode.prompt_ids + episode.response_ids])
        hidden = self.trunk(input_ids=ids).last_hidden_state[0, len(episode.prompt_ids) - 1 : -1]
        return ((hidden @ self.head.T)[:, 0] - self.mean) / self.std

    def look_back(self, episodes: list[Episode]) -> None:
        """Work out what stays as it is for the whole update: advantages and returns.

        Old log-probabilities, reference and values are the rollout's, which are rounded to float32, once they agree.
        """
        config = self.config
        self.old, self.reference_logps, self.old_values = (
            [torch.from_numpy(getattr(episode, name)) for episode in episodes]
            for name in ("logps", "reference_logps", "values")
        )
        with torch.no_grad():
            for number, episode in enumerate(episodes):
                for found, expected in (
                    (self.old, self.read(episode, self.policy)[0]),
                    (self.reference_logps, self.read(episode, self.reference)[0]),
                    (self.old_values, self.value(episode)),
                ):
                    torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-6)
        rewards = []
        for episode, old, reference in zip(episodes, self.old, self.reference_logps, strict=True):
            log_ratio = old - reference
            penalty = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": (-log_ratio).exp() - 1 + log_ratio}
            of_tokens = [0.0] * len(old)
            if config.kl.place == "reward":
                of_tokens = [-config.kl.coef * float(k) for k in penalty[config.kl.estimator]]
            of_tokens[-1] += episode.score
            rewards.append(of_tokens)
        if config.whiten_rewards:
            every = torch.tensor([r for of_tokens in rewards for r in of_tokens], dtype=torch.float64)
            scale = math.sqrt(float(every.var(correction=0)) + 1e-8)
            middle = float(every.mean())
            rewards = [[(r - middle) / scale + middle for r in of_tokens] for of_tokens in rewards]
        self.advantages, self.returns = [], []
        for of_tokens, values in zip(rewards, self.old_values, strict=True):
            advantages: list[float] = []
            next_value = ahead = 0.0
            for reward, value in zip(reversed(of_tokens), reversed(values.tolist()), strict=True):
                ahead = reward + config.gamma * next_value - value + config.gamma * config.lam * ahead
                next_value = value
                advantages.insert(0, ahead)
            self.advantages.append(advantages)
            self.returns.append([a + v for a, v in zip(advantages, values.tolist(), strict=True)])
        if config.whiten_advantages:
            every = torch.tensor([a for of_tokens in self.advantages for a in of_tokens], dtype=torch.float64)
            scale, middle = math.sqrt(float(every.var(correction=0)) + 1e-8), float(every.mean())
            self.advantages = [[(a - middle) / scale for a in of_tokens] for of_tokens in self.advantages]

    def step(self, number: int, chosen: list[int], episodes: list[Episode]) -> None:
        """Take one optimizer step on some of the episodes."""
        config = self.config
        num_tokens = sum(len(episodes[index].response_ids) for index in chosen)
        for parameter in [*self.of_policy.values(), *self.of_critic.values()]:
            parameter.grad = None
        for index in chosen:
            logps, entropies = self.read(episodes[index], self.policy)
            values = self.value(episodes[index])
            loss = torch.zeros((), dtype=torch.float64)
            for t in range(len(logps)):
                if number >= config.critic.warmup_steps:
                    loss = loss + self.policy_loss(index, t, logps[t]) - config.entropy_coef * entropies[t]
                loss = loss + config.critic.loss_coef * self.value_loss(index, t, values[t])
            (loss / num_tokens).backward()
        self.descend(number)

    def policy_loss(self, index: int, t: int, logp: Tensor) -> Tensor:
        config = self.config
        ratio, advantage = (logp - self.old[index][t]).exp(), self.advantages[index][t]
        low, high = 1 - config.clip_range, 1 + config.clip_range
        gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        self.clipped["policy"] += bool(gain < ratio * advantage)
        if config.dual_clip is not None and advantage < 0:
            self.clipped["dual"] += bool(gain < config.dual_clip * advantage)
            gain = torch.maximum(gain, torch.tensor(config.dual_clip * advantage, dtype=torch.float64))
        loss = -gain
        if config.kl.place == "loss":
            log_ratio = self.reference_logps[index][t] - logp
            loss = loss + config.kl.coef * (log_ratio.exp() - 1 - log_ratio)
        return loss

    def value_loss(self, index: int, t: int, value: Tensor) -> Tensor:
        old, target, clip = float(self.old_values[index][t]), self.returns[index][t], self.config.critic.clip_range
        plain = (value - target) ** 2
        if clip is None:
            return plain / 2
        near = (value.clamp(old - clip, old + clip) - target) ** 2
        self.clipped["value"] += bool(near > plain)
        return torch.maximum(plain, near) / 2

    def descend(self, number: int) -> None:
        """Clip the gradients and take a step of AdamW with whoever learns; a policy's own steps begin after the warm-up
        of the critic, and with them its schedule and its count of updates."""
        total, alone = EPOCHS * MINI_BATCHES, self.config.critic.warmup_steps
        trained = [p for p in [*self.of_policy.values(), *self.of_critic.values()] if p.grad is not None]
        optimizer = self.config.optimizer
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in trained if p.grad is not None))
        cut = min(1.0, optimizer.max_grad_norm / (norm + 1e-6))
        critic_rate = self.config.critic.learning_rate or optimizer.learning_rate
        learners = [(self.of_critic, critic_rate, number, total)]
        if number >= alone:
            learners.append((self.of_policy, optimizer.learning_rate, number - alone, total - alone))
        for parameters, rate, own_number, own_total in learners:
            for parameter in parameters.values():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad * cut
                self.adamw(parameter, gradient, rate * self.share(own_number, own_total), own_number + 1)

    def share(self, number: int, total: int) -> float:
        """Return what of the rate is left at a step: it warms up linearly, then falls as a cosine."""
        warmup = round(self.config.optimizer.warmup_fraction * total)
        if number < warmup:
            return number / warmup
        return (1 + math.cos(math.pi * (number - warmup) / (total - warmup))) / 2

    @torch.no_grad()
    def adamw(self, parameter: Tensor, gradient: Tensor, rate: float, count: int) -> None:
        optimizer = self.config.optimizer
        zeros = torch.zeros_like(parameter)
        first, second = self.moments.get(id(parameter), (zeros, zeros))
        first = optimizer.beta1 * first + (1 - optimizer.beta1) * gradient
        second = optimizer.beta2 * second + (1 - optimizer.beta2) * gradient**2
        self.moments[id(parameter)] = first, second
        mean, square = first / (1 - optimizer.beta1**count), second / (1 - optimizer.beta2**count)
        decay = optimizer.weight_decay * (parameter.dim() > 1)  # not of the norms' scales
        parameter -= rate * decay * parameter + rate * mean / (square.sqrt() + 1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_updates_of_a_rollout_are_those_of_the_naive_implementation(
    inputs: Inputs, tmp_path: Path, variant: str
) -> None:
    config = build(PpoConfig, {**KNOBS, **VARIANTS[variant]}, "train.ppo")
    trainer = train(inputs, config, tmp_path / "work")
    episodes = trainer.episodes
    of_sequence = {(*e.prompt_ids, *e.response_ids): number for number, e in enumerate(episodes)}
    assert len(of_sequence) == len(episodes) == 16
    assert {e.ended for e in episodes} == {True, False}

    naive = NaivePpo(inputs, config)
    naive.look_back(episodes)
    for number in range(EPOCHS * MINI_BATCHES):
        chosen = [of_sequence[row] for step, rows in trainer.seen if step == number for row in rows]
        assert len(chosen) == 8
        naive.step(number, chosen, episodes)

    for found, expected in zip([e.advantages for e in episodes], naive.advantages, strict=True):
        assert found.tolist() == pytest.approx(expected, abs=1e-12)
    expected = {f"policy.{name}": parameter for name, parameter in naive.of_policy.items()}
    expected |= {f"critic.{name}".replace("head", "head.weight"): p for name, p in naive.of_critic.items()}
    found = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    assert set(found) == set(expected)
    difference = {name: float((found[name] - expected[name].detach()).abs().max()) for name in found}
    assert {name: d for name, d in difference.items() if d >= 1e-6} == {}
    assert all(naive.clipped[kind] > 0 for kind in CLIPS[variant])  # or the comparison would not show it
