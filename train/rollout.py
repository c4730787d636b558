"""Rollouts: sample responses and score them; what becomes of the scores is the method's.

Prompts are spread over the ranks; afterwards every rank holds all episodes, so that what follows (whitening,
mini-batches) is the same whatever the number of ranks.

N response tokens, B episodes of a forward pass, T positions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.sample.batching import by_tokens
from posttrain.sample.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage import heartbeat
from posttrain.stage.errors import StoppedError
from posttrain.train.actor_critic import ActorCritic, states_before
from posttrain.train.batching import EpochStream
from posttrain.train.dataset import Row
from posttrain.train.episodes import Episode, Floats, token_batch
from posttrain.train.policy_server import PolicyServer
from posttrain.train.ppo_config import RolloutConfig
from posttrain.train.rewards import Answer, Rewards
from posttrain.train.signals import StopOnSignal
from posttrain.train.token_log_probs import backbone_and_head, head_log_probs

Frozen = Callable[[], contextlib.AbstractContextManager[Any]]
"""Gives the reference model for the time of a ``with`` block."""
Finish = Callable[[list[Episode]], dict[str, float]]
"""Gives all episodes of a phase their advantages, and returns what is logged of them."""


@dataclasses.dataclass
class Rollout:
    """The episodes of all ranks, and what is logged of them."""

    episodes: list[Episode]
    metrics: dict[str, float]


class RolloutWorker:
    """Makes the episodes of one phase after the other."""

    def __init__(
        self,
        config: RolloutConfig,
        tokenizer: Any,
        prompts: Sequence[Row],
        reference: Frozen | None,
        rewards: Rewards,
        seed: int,
        rank: int,
        world_size: int,
        samples: Path,
        server: PolicyServer | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.reference = reference
        self.rewards = rewards
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.samples = samples
        self.server = server

    def collect(
        self, phase: int, policy: Any, finish: Finish, stop: StopOnSignal, critic: ActorCritic | None = None
    ) -> Rollout:
        """Return the episodes of a phase, sampled by ``policy`` and valued by the critic of ``critic``, if any.

        ``finish`` gets the episodes of all ranks and gives them their advantages. Raises StoppedError on all ranks
        when ``stop`` asks any of them to stop while it samples.
        """
        clock = _Clock()
        heartbeat.beat("sampling")
        episodes = self._sample(phase, policy, stop)
        if stop.any_rank_requested(_device(policy)):
            raise StoppedError(f"stopped on request in rollout {phase + 1}")
        clock.lap("rollout")
        heartbeat.beat("scoring")
        self._score(episodes, policy, critic)
        clock.lap("scoring")
        everyone = _gather(episodes, self.world_size)
        metrics = finish(everyone)
        tokens = sum(len(episode.response_ids) for episode in everyone)
        metrics |= {f"time/{name}": seconds for name, seconds in clock.laps.items()}
        metrics["tokens_per_second/rollout"] = tokens / max(clock.laps["rollout"], 1e-9)
        return Rollout(everyone, metrics)

    def _sample(self, phase: int, policy: Any, stop: StopOnSignal) -> list[Episode]:
        """Return this rank's responses; they depend on the seed, the phase and the prompt's place in it alone.

        Asked to stop, it returns none of them.
        """
        config = self.config
        rows = prompts_of_phase(
            len(self.prompts), config.rollout_batch_size // config.samples_per_prompt, phase, self.seed
        )
        places = sorted(range(len(rows)), key=lambda place: (-len(self.prompts[rows[place]]["prompt_ids"]), place))
        own = places[self.rank :: self.world_size]
        seeds = [int(np.random.SeedSequence([self.seed, phase, place]).generate_state(1)[0]) for place in own]
        plain = SamplingParams(
            max_tokens=config.max_new_tokens, temperature=config.temperature, num_samples=config.samples_per_prompt
        )
        prompts = [self.prompts[rows[place]]["prompt_ids"] for place in own]
        params = [dataclasses.replace(plain, seed=seed) for seed in seeds]
        try:
            sampled = self._generate(policy, prompts, params, stop)
        except _Interrupted:
            return []
        return [
            Episode(
                place=place * config.samples_per_prompt + index,
                row=rows[place],
                prompt_ids=list(prompt),
                response_ids=sample.token_ids,
                logps=np.array(sample.sampling_logprobs, np.float32),
                ended=sample.finish_reason == "stop",
                text=sample.text,
            )
            for place, prompt, samples in zip(own, prompts, sampled, strict=True)
            for index, sample in enumerate(samples)
        ]

    def _generate(
        self, policy: Any, prompts: list[list[int]], params: list[SamplingParams], stop: StopOnSignal
    ) -> list[list[Sample]]:
        if self.server is not None:
            return self.server.generate(policy, prompts, params)
        sampler = Sampler(policy, self.tokenizer, max_batch_size=self.config.rollout_batch)
        return sampler.generate(prompts, params, on_token=lambda *_: _go_on(stop))

    @torch.no_grad()
    def _score(self, episodes: list[Episode], policy: Any, critic: ActorCritic | None) -> None:
        """Fill in values, reference log-probabilities and scores, and our log-probabilities where a server sampled."""
        if self.server is not None:
            for episode in episodes:
                episode.sampler_logps = episode.logps
            self._log_probs(episodes, policy, "logps")
        if critic is not None:
            self._value(episodes, critic)
        if self.reference is not None:
            with self.reference() as reference:
                self._log_probs(episodes, reference, "reference_logps")
        self._reward(episodes)

    def _value(self, episodes: list[Episode], model: ActorCritic) -> None:
        pad, limit = self.tokenizer.pad_token_id, self.config.scoring_tokens
        was_training = model.training
        model.eval()
        for part, ids_BT, chosen_BT in scoring_batches(episodes, pad, limit, _device(model)):
            hidden_NH = None
            if model.critic.trunk is None:
                hidden_NH = states_before(backbone_and_head(model.policy)[0], ids_BT, chosen_BT)
            _hand_out(part, "values", model.critic(ids_BT, chosen_BT, hidden_NH))
        model.train(was_training)

    def _log_probs(self, episodes: list[Episode], model: Any, name: str) -> None:
        pad, limit = self.tokenizer.pad_token_id, self.config.scoring_tokens
        trunk, head = backbone_and_head(model)
        for part, ids_BT, chosen_BT in scoring_batches(episodes, pad, limit, _device(model)):
            hidden_NH = states_before(trunk, ids_BT, chosen_BT)
            logps_N, _ = head_log_probs(model, head, hidden_NH, ids_BT[chosen_BT], self.config.temperature)
            _hand_out(part, name, logps_N)

    def _reward(self, episodes: list[Episode]) -> None:
        answers = [self._answer(episode) for episode in episodes]
        totals, components = self.rewards.score(answers)
        for number, episode in enumerate(episodes):
            episode.score = totals[number] - self.config.missing_eos_penalty * (not episode.ended)
            episode.components = {name: values[number] for name, values in components.items()}

    def show(self, phase: int, step: int, episodes: Sequence[Episode]) -> None:
        """Append some responses of a rollout to a file for people; a rollout that is done again stands there twice."""
        if self.rank > 0:
            return
        with self.samples.open("a", encoding="utf-8") as file:
            for episode in episodes[: self.config.sample_rows]:
                prompt = self.prompts[episode.row]["messages"]
                row = {"rollout": phase, "step": step, "prompt": prompt, "response": episode.text}
                row |= {"score": round(episode.score, 4), "ended": episode.ended, **episode.components}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _answer(self, episode: Episode) -> Answer:
        row = self.prompts[episode.row]
        return Answer(
            messages=row["messages"],
            prompt_ids=episode.prompt_ids,
            response_ids=episode.response_ids,
            text=episode.text,
            ended=episode.ended,
            reference=row["reference"],
            scorer=row["scorer"],
        )


def prompts_of_phase(num_prompts: int, per_phase: int, phase: int, seed: int) -> list[int]:
    """Return the prompts of a phase: the next ones of an endless stream of shuffled passes."""
    stream = EpochStream(num_prompts, seed)
    stream.take(phase * per_phase)
    return stream.take(per_phase)


def scoring_batches(
    episodes: Sequence[Episode], pad_token_id: int, limit: int, device: torch.device
) -> Iterator[tuple[list[Episode], Tensor, Tensor]]:
    """Yield episodes of similar length with ``ids_BT`` and the mask of their response tokens ``chosen_BT``."""
    for rows in by_tokens([episode.length for episode in episodes], limit):
        part = [episodes[row] for row in rows]
        ids_BT, _, chosen_BT = token_batch(part, pad_token_id)
        heartbeat.pulse()
        yield part, ids_BT.to(device), chosen_BT.to(device)


class _Interrupted(Exception):  # noqa: N818
    """This rank was asked to stop; the others do not know yet."""


def _go_on(stop: StopOnSignal) -> None:
    """Give a sign of life, or raise where the rank was asked to stop."""
    heartbeat.pulse()
    if stop.requested:
        raise _Interrupted


def _hand_out(episodes: Sequence[Episode], name: str, values_N: Tensor) -> None:
    """Give every episode its part of values that stand one behind the other."""
    parts: list[Floats] = np.split(
        values_N.float().cpu().numpy(), np.cumsum([len(episode.response_ids) for episode in episodes])[:-1]
    )
    for episode, part in zip(episodes, parts, strict=True):
        setattr(episode, name, part.copy())


def _gather(episodes: list[Episode], world_size: int) -> list[Episode]:
    """Return the episodes of all ranks in one order: by prompt, then as they were sampled."""
    everyone = [episodes]
    if world_size > 1:
        everyone = [[] for _ in range(world_size)]
        dist.all_gather_object(everyone, episodes)
    return sorted((episode for part in everyone for episode in part), key=lambda episode: episode.place)


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


class _Clock:
    """Seconds of each part of a phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now
