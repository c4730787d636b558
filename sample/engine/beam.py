"""Beam search: the most likely continuation, as far as a few running ones can tell.

Letters of array shapes: B rows of the batch, V tokens of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.sample.engine.decoder import Decoder
from posttrain.sample.engine.ending import Ending
from posttrain.sample.sampling import FinishReason, Sample, SamplingParams


@dataclasses.dataclass(frozen=True)
class Beam:
    """A continuation that may still grow, or that ended."""

    tokens: list[int]
    logprobs: list[float]
    row: int
    """Row of its search that it grew from."""

    def score(self, length_penalty: float) -> float:
        """Return its log-probability, normalised by its length (Wu et al. 2016)."""
        return float(sum(self.logprobs) / len(self.tokens) ** length_penalty)


class Search:
    """The beams of one prompt."""

    def __init__(self, prompt: Sequence[int], params: SamplingParams, ending: Ending) -> None:
        self.prompt, self.params, self.ending = prompt, params, ending
        self.running = [Beam([], [], 0)]
        self.finished: list[tuple[float, FinishReason, Beam]] = []
        self.started = time.perf_counter()

    def grow(self, logprobs_BV: Tensor) -> None:
        """Extend the running beams by their best tokens, given the log-probabilities of each beam's next token.

        An ended continuation counts only while it is among the best ``num_beams``; one that does not end takes its
        place among the running.
        """
        beams, width = self.params.num_beams, logprobs_BV.shape[1]
        sums_B = torch.tensor([sum(beam.logprobs) for beam in self.running], device=logprobs_BV.device)
        candidates = (logprobs_BV + sums_B[:, None]).flatten()
        best = candidates.topk(min((1 + len(self.ending.tokens)) * beams, len(candidates))).indices
        chosen = zip(best.tolist(), logprobs_BV.flatten()[best].tolist(), strict=True)
        running: list[Beam] = []
        for rank, (place, logprob) in enumerate(chosen):
            old = self.running[place // width]
            beam = Beam([*old.tokens, place % width], [*old.logprobs, logprob], place // width)
            stops = self.ending.reached(beam.tokens)
            if not stops and len(beam.tokens) < self.params.max_tokens:
                running.append(beam)
            elif rank < beams:
                self.finished.append((beam.score(self.params.length_penalty), "stop" if stops else "length", beam))
        self.finished = sorted(self.finished, key=lambda entry: entry[0], reverse=True)[:beams]
        self.running = [] if self._decided(running) else running[:beams]

    def samples(self) -> list[Sample]:
        """Return the best continuations, the best first."""
        seconds = time.perf_counter() - self.started
        return [
            Sample(
                token_ids=beam.tokens,
                logprobs=beam.logprobs,
                sampling_logprobs=[0.0] * len(beam.tokens),
                finish_reason=reason,
                seconds=seconds,
                **self.ending.said(self.prompt, beam.tokens),
            )
            for _, reason, beam in self.finished[: self.params.num_samples]
        ]

    def _decided(self, running: Sequence[Beam]) -> bool:
        """Return whether no running beam can come to score better than all that have finished."""
        if not running or len(self.finished) < self.params.num_beams:
            return not running
        penalty = self.params.length_penalty
        longest = self.params.max_tokens if penalty > 0 else len(running[0].tokens)
        return bool(sum(running[0].logprobs) / longest**penalty <= self.finished[-1][0])


def beam_search(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], searches: Sequence[Search], max_batch_size: int
) -> None:
    """Run the searches of some prompts to their ends, as many at once as have room for all their beams."""
    most = max(search.params.num_beams for search in searches)
    at_once = max(1, max_batch_size // most)
    for start in range(0, len(prompts), at_once):
        part = slice(start, start + at_once)
        _search_together(model, prompts[part], searches[part], most)


def _search_together(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], searches: Sequence[Search], most: int
) -> None:
    longest = max(len(ids) + search.params.max_tokens for ids, search in zip(prompts, searches, strict=True))
    decoder = Decoder(model, most * len(searches), longest, others_wait=False)
    logits_BV = decoder.admit(prompts, [1] * len(prompts))
    active = list(searches)
    while active:
        logprobs_BV = logits_BV.log_softmax(-1)
        first, origins = 0, []
        for search in active:
            rows = len(search.running)
            search.grow(logprobs_BV[first : first + rows])
            origins += [first + beam.row for beam in search.running]
            first += rows
        active = [search for search in active if search.running]
        if active:
            decoder.rearrange(origins)
            tokens = [beam.tokens[-1] for search in active for beam in search.running]
            logits_BV = decoder.step(torch.tensor(tokens))
