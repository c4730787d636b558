"""Draw the responses of a rollout.

Prompts are spread over the ranks; a response depends on the seed, the rollout and its prompt's place in it alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage import heartbeat
from posttrain.train.engine.batching import EpochStream
from posttrain.train.engine.signals import StopOnSignal
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rollouts.server import PolicyServer
from posttrain.train.rows.dataset import Row


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How responses are drawn."""

    prompts_per_rollout: int
    """Over all ranks."""
    params: SamplingParams
    """Of every request, but for its seed."""
    batch_size: int
    """Responses that a rank samples at once."""
    seed: int
    rank: int
    world_size: int


@dataclasses.dataclass(frozen=True)
class RolloutSampler:
    """Draws this rank's responses to the prompts of one rollout after the other."""

    tokenizer: Any
    prompts: Sequence[Row]
    drawing: Drawing
    server: PolicyServer | None = None
    """Who samples, where it is not the rank itself."""

    def sample(self, phase: int, policy: Any, stop: StopOnSignal) -> list[Episode]:
        """Return this rank's responses to the prompts of a phase; none of them when it is asked to stop."""
        drawing = self.drawing
        rows = prompts_of_phase(len(self.prompts), drawing.prompts_per_rollout, phase, drawing.seed)
        places = sorted(range(len(rows)), key=lambda place: (-len(self.prompts[rows[place]]["prompt_ids"]), place))
        own = places[drawing.rank :: drawing.world_size]
        seeds = [int(np.random.SeedSequence([drawing.seed, phase, place]).generate_state(1)[0]) for place in own]
        prompts = [self.prompts[rows[place]]["prompt_ids"] for place in own]
        params = [dataclasses.replace(drawing.params, seed=seed) for seed in seeds]
        try:
            sampled = self._generate(policy, prompts, params, stop)
        except _Interrupted:
            return []
        return [
            Episode(
                place=place * drawing.params.num_samples + index,
                row=rows[place],
                prompt_ids=list(prompt),
                response_ids=sample.token_ids,
                logps=np.array(sample.sampling_logprobs, np.float32),
                ended=sample.ended,
                text=sample.text,
                reasoning=sample.reasoning,
                reasoning_tokens=sample.reasoning_tokens,
                answered=sample.answered,
            )
            for place, prompt, samples in zip(own, prompts, sampled, strict=True)
            for index, sample in enumerate(samples)
        ]

    def _generate(
        self, policy: Any, prompts: list[list[int]], params: list[SamplingParams], stop: StopOnSignal
    ) -> list[list[Sample]]:
        if self.server is not None:
            return self.server.generate(policy, prompts, params)
        sampler = Sampler(policy, self.tokenizer, max_batch_size=self.drawing.batch_size)
        return sampler.generate(prompts, params, on_token=lambda *_: _go_on(stop))


def prompts_of_phase(num_prompts: int, per_phase: int, phase: int, seed: int) -> list[int]:
    """Return the prompts of a phase: the next ones of an endless stream of shuffled passes."""
    stream = EpochStream(num_prompts, seed)
    stream.take(phase * per_phase)
    return stream.take(per_phase)


class _Interrupted(Exception):  # noqa: N818
    """This rank was asked to stop; the others do not know yet."""


def _go_on(stop: StopOnSignal) -> None:
    """Give a sign of life, or raise where the rank was asked to stop."""
    heartbeat.pulse()
    if stop.requested:
        raise _Interrupted
