"""One rollout: responses are drawn, scored and gathered; what becomes of the scores is the method's.

Afterwards every rank holds all episodes, so that what follows (whitening, mini-batches) is the same whatever the number
of ranks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from posttrain.stage import heartbeat
from posttrain.stage.errors import StoppedError
from posttrain.train.engine.signals import StopOnSignal
from posttrain.train.nets.actor_critic import ActorCritic
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rollouts.sampling import RolloutSampler
from posttrain.train.rollouts.scoring import EpisodeScorer

Finish = Callable[[list[Episode]], dict[str, float]]
"""Gives all episodes of a phase their advantages, and returns what is logged of them."""


@dataclasses.dataclass
class Rollout:
    """The episodes of all ranks, and what is logged of them."""

    episodes: list[Episode]
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Collector:
    """Makes the episodes of one phase after the other."""

    sampler: RolloutSampler
    scorer: EpisodeScorer

    def collect(
        self,
        phase: int,
        policy: Any,
        finish: Finish,
        stop: StopOnSignal,
        critic: ActorCritic | None = None,
        let_go: Callable[[], None] | None = None,
    ) -> Rollout:
        """Return the episodes of a phase, sampled by ``policy`` and valued by the critic of ``critic``, if any.

        ``finish`` gets the episodes of all ranks and gives them their advantages; ``let_go`` is called when ``policy``
        and ``critic`` have done their part. Raises StoppedError on all ranks
        when ``stop`` asks any of them to stop while it samples.
        """
        clock = _Clock()
        heartbeat.beat("sampling")
        episodes = self.sampler.sample(phase, policy, stop)
        if stop.any_rank_requested(next(policy.parameters()).device):
            raise StoppedError(f"stopped on request in rollout {phase + 1}")
        clock.lap("rollout")
        heartbeat.beat("scoring")
        elsewhere = self.sampler.server is not None
        self.scorer.score(episodes, policy, critic, drawn_elsewhere=elsewhere, let_go=let_go)
        clock.lap("scoring")
        everyone = _gather(episodes, self.sampler.drawing.world_size)
        metrics = finish(everyone)
        tokens = sum(len(episode.response_ids) for episode in everyone)
        metrics |= {f"time/{name}": seconds for name, seconds in clock.laps.items()}
        metrics["tokens_per_second/rollout"] = tokens / max(clock.laps["rollout"], 1e-9)
        return Rollout(everyone, metrics)


def _gather(episodes: list[Episode], world_size: int) -> list[Episode]:
    """Return the episodes of all ranks in one order: by prompt, then as they were sampled."""
    everyone = [episodes]
    if world_size > 1:
        everyone = [[] for _ in range(world_size)]
        dist.all_gather_object(everyone, episodes)
    return sorted((episode for part in everyone for episode in part), key=lambda episode: episode.place)


class _Clock:
    """Seconds of each part of a phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now
