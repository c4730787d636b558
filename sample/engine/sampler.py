"""Sampling from a causal language model.

One loop over the model's forward: prompts are run once and shared by their samples, every running sample takes a token
per step, ended samples leave the batch and waiting prompts enter.

Letters of array shapes: B rows of the batch, V tokens of the vocabulary, W words of a bit mask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.declared import context_length
from posttrain.models.load import evaluating
from posttrain.sample.engine.beam import Search, beam_search
from posttrain.sample.engine.decoder import Decoder
from posttrain.sample.engine.ending import Ending, end_tokens
from posttrain.sample.engine.logits import add_bias, choose, knobs_of, log_probabilities, penalise_repeats
from posttrain.sample.engine.running import Running
from posttrain.sample.sampling import Accept, OnToken, Sample, SamplingParams
from posttrain.sample.structured.constraint import ConstraintFactory, apply_bitmask, mask_words
from posttrain.stage import heartbeat
from posttrain.stage.errors import UsageError

PREFILL_TOKENS = 8192
"""Most tokens of prompts, padding included, that run at once."""


class Sampler:
    """Continues prompts with samples of a model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_batch_size: int = 64) -> None:
        """``max_batch_size`` is the number of samples that run at once, a matter of memory and speed only."""
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.ends = end_tokens(model, tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
        accept: Accept | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, given as token ids, in the order of prompts and of their samples.

        A sample depends on its model, prompt, parameters and number, not on what else runs, but for the rounding of
        the forward: docs/sampling.md says how seldom that shows. The model runs on its device, in evaluation mode.
        Beam search calls neither ``accept`` nor ``on_token``. Raises UsageError on a prompt that is empty or leaves no
        room for ``max_tokens``.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        limit = context_length(self.model.config)
        for number, (prompt, request) in enumerate(zip(prompts, each, strict=True)):
            _check_length(number, prompt, request, limit)
        factories = constraints if constraints is not None else [None] * len(prompts)
        if any(request.num_beams > 1 for request in each):
            return self._search(prompts, each, factories)
        with torch.inference_mode(), evaluating(self.model):
            return _Run(self, prompts, each, factories, accept, on_token).finish()

    def ending(self, params: SamplingParams) -> Ending:
        """Return where samples of a request end."""
        return Ending(self.tokenizer, self.ends.union(params.stop_token_ids), params.stop)

    def _search(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        constraints: Sequence[ConstraintFactory | None],
    ) -> list[list[Sample]]:
        if any(request.num_beams == 1 for request in params):
            raise UsageError("num_beams: give requests with and without beams in calls of their own")
        if any(constraint is not None for constraint in constraints):
            raise UsageError("num_beams: beam search takes no grammar; set num_beams=1")
        searches = [
            Search(prompt, request, self.ending(request)) for prompt, request in zip(prompts, params, strict=True)
        ]
        with torch.inference_mode(), evaluating(self.model):
            beam_search(self.model, prompts, searches, self.max_batch_size)
        return [search.samples() for search in searches]


class _Run:
    """One call of `Sampler.generate`: who waits, who runs, and the results."""

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        constraints: Sequence[ConstraintFactory | None],
        accept: Accept | None,
        on_token: OnToken | None,
    ) -> None:
        self.sampler, self.prompts, self.params, self.constraints = sampler, prompts, params, constraints
        self.accept, self.on_token = accept, on_token
        self.accepted: set[int] = set()
        self.results: list[dict[int, Sample]] = [{} for _ in prompts]
        self.waiting: deque[tuple[int, list[int]]] = deque(
            (prompt, list(range(request.num_samples))) for prompt, request in enumerate(params)
        )
        self.most = min(sampler.max_batch_size, sum(request.num_samples for request in params))
        longest = max((len(ids) + request.max_tokens for ids, request in zip(prompts, params, strict=True)), default=0)
        self.decoder = Decoder(sampler.model, self.most, longest)
        self.rows: list[Running] = []
        self.logits_BV = torch.empty(0)
        self.bitmask_BW = np.empty((0, 0), np.int32)

    def finish(self) -> list[list[Sample]]:
        """Run until nothing runs or waits."""
        while self.rows or self.waiting:
            heartbeat.pulse()
            self._admit()
            self._take_tokens()
            self._run_ahead()
            self._drop_ended()
            if self.rows:
                tokens_B = torch.tensor([row.tokens[-1] for row in self.rows])
                self.logits_BV = self.decoder.step(tokens_B)
        return [[samples[index] for index in sorted(samples)] for samples in self.results]

    def _admit(self) -> None:
        """Let waiting prompts in once an eighth of the rows is free, since a forward of a few rows is as slow."""
        free = self.most - len(self.rows)
        if self.rows and free < max(1, self.most // 8):
            return
        entering: list[tuple[int, list[int]]] = []
        while self.waiting and free:
            prompt, indices = self.waiting[0]
            if len(indices) > free and (self.rows or entering):
                break  # together with its other samples, so that the prompt is run once
            entering.append((prompt, indices[:free]))
            del indices[:free]
            free -= len(entering[-1][1])
            if not indices:
                self.waiting.popleft()
        logits = [self.logits_BV] if self.rows else []
        for group in _prefill_groups([(self.prompts[prompt], prompt, indices) for prompt, indices in entering]):
            logits.append(self.decoder.admit([ids for ids, _, _ in group], [len(indices) for _, _, indices in group]))
            self.rows += [self._start(prompt, index) for _, prompt, indices in group for index in indices]
        if entering:
            self.logits_BV = torch.cat(logits)
            self._turn_knobs()

    def _start(self, prompt: int, index: int) -> Running:
        params, factory = self.params[prompt], self.constraints[prompt]
        constraint = factory() if factory is not None else None
        return Running(self.prompts[prompt], prompt, index, params, self.sampler.ending(params), constraint)

    def _turn_knobs(self) -> None:
        """Gather what the rows' parameters say, after rows came or went."""
        rows, device = self.rows, self.decoder.device
        width = self.logits_BV.shape[1]
        self.knobs = knobs_of([row.params for row in rows], width, device)
        self.biases = [row.params.logit_bias for row in rows] if any(row.params.logit_bias for row in rows) else None
        self.seen_BV = None
        if any(row.params.repetition_penalty != 1 for row in rows):
            self.seen_BV = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
            for place, row in enumerate(rows):
                self.seen_BV[place, torch.tensor([*row.prompt, *row.tokens], device=device)] = True
            self.penalty_B1 = torch.tensor([[row.params.repetition_penalty] for row in rows], device=device)
        bound = any(row.constraint is not None for row in rows)
        self.untouched = self.knobs.plain and self.biases is None and self.seen_BV is None and not bound
        if bound and not self.bitmask_BW.size:
            self.bitmask_BW = np.zeros((self.most, mask_words(width)), np.int32)

    def _take_tokens(self) -> None:
        """Choose the next token of every row."""
        everyone = list(range(len(self.rows)))
        tokens, sampling_logprobs = self._draw(everyone, 0)
        refused, attempt = [row for row in everyone if not self.rows[row].take(tokens[row])], 1
        while refused:
            again, again_logprobs = self._draw(refused, attempt)
            for row, token, logprob in zip(refused, again, again_logprobs, strict=True):
                tokens[row], sampling_logprobs[row] = token, logprob
            refused, attempt = [row for row in refused if not self.rows[row].take(tokens[row])], attempt + 1
        tokens_B = torch.tensor(tokens, device=self.decoder.device)
        if self.seen_BV is not None:
            self.seen_BV[torch.arange(len(tokens)), tokens_B] = True
        logprobs = sampling_logprobs
        if not self.untouched:
            logprobs = log_probabilities(self.logits_BV, tokens_B).tolist()
        for place, sampled in enumerate(self.rows):
            self._append(sampled, tokens[place], logprobs[place], sampling_logprobs[place])

    def _draw(self, places: list[int], attempt: int) -> tuple[list[int], list[float]]:
        """Return a token for some rows, and its log-probability under the distribution that it was drawn from."""
        everyone = len(places) == len(self.rows)
        knobs = self.knobs if everyone else self.knobs.take(torch.tensor(places, device=self.decoder.device))
        logits_BV = self._masked_logits(places, everyone)
        uniforms = np.stack([self.rows[place].draws(attempt) for place in places])
        tokens_B, logprobs_B = choose(logits_BV, knobs, torch.from_numpy(uniforms).to(logits_BV.device))
        tokens, logprobs = tokens_B.tolist(), logprobs_B.tolist()
        for number, place in enumerate(places):
            if self.rows[place].forced:
                tokens[number], logprobs[number] = self.rows[place].forced[0], 0.0
        return tokens, logprobs

    def _masked_logits(self, places: list[int], everyone: bool) -> Tensor:
        """Return logits after penalty, bias and constraint; the model's own where a row has none of them."""
        part = slice(None) if everyone else torch.tensor(places, device=self.decoder.device)
        logits_BV = self.logits_BV[part]
        if self.seen_BV is not None:
            logits_BV = penalise_repeats(logits_BV, self.seen_BV[part], self.penalty_B1[part])
        if self.biases is not None:
            logits_BV = logits_BV.clone()
            add_bias(logits_BV, [self.biases[place] for place in places])
        bound = [n for n, place in enumerate(places) if self.rows[place].draws_under_constraint]
        if bound:
            for n in bound:
                self.rows[places[n]].fill(self.bitmask_BW[places[n]])
            logits_BV = logits_BV.clone()
            if len(bound) == len(places):
                apply_bitmask(logits_BV, self.bitmask_BW[places])
            else:
                part_BV = logits_BV[bound]
                apply_bitmask(part_BV, self.bitmask_BW[[places[n] for n in bound]])
                logits_BV[bound] = part_BV
        return logits_BV

    def _append(self, row: Running, token: int, logprob: float, sampling_logprob: float) -> None:
        row.append(token, logprob, sampling_logprob)
        if self.on_token is not None:
            self.on_token(row.number, row.index, token)

    def _run_ahead(self) -> None:
        """Run several forced tokens of some rows at once, where that takes more tokens than a step of the batch."""
        queued = [0 if row.reason else len(row.forced) for row in self.rows]
        if sum(queued) <= len(self.rows):
            return
        count = max(set(queued), key=lambda count: count * sum(length >= count for length in queued))
        places = [place for place, length in enumerate(queued) if length >= count]
        if count * len(places) <= len(self.rows):
            return
        forced = [list(self.rows[place].forced)[:count] for place in places]
        pending = [[self.rows[place].tokens[-1], *tokens[:-1]] for place, tokens in zip(places, forced, strict=True)]
        logits_PTV = self.decoder.extend(places, pending)
        tokens_N = torch.tensor(forced, device=logits_PTV.device).flatten()
        logprobs = log_probabilities(logits_PTV.flatten(0, 1), tokens_N).unflatten(0, (-1, count)).tolist()
        for place, tokens, row_logprobs in zip(places, forced, logprobs, strict=True):
            row = self.rows[place]
            for token, logprob in zip(tokens, row_logprobs, strict=True):
                if row.reason is None and row.take(token):
                    self._append(row, token, logprob, 0.0)
        if self.seen_BV is not None:
            self.seen_BV[torch.tensor(places)[:, None], torch.tensor(forced)] = True

    def _drop_ended(self) -> None:
        """Take the results of rows that ended, cancel what they make needless, and close the gaps."""
        ended = [row for row in self.rows if row.reason is not None]
        if not ended:
            return
        for row in ended:
            self.results[row.number][row.index] = sample = row.sample()
            if self.accept is not None and row.number not in self.accepted and self.accept(row.number, sample):
                self._cancel(row.number)
        kept = [place for place, row in enumerate(self.rows) if row.index not in self.results[row.number]]
        self.rows = [self.rows[place] for place in self.decoder.keep(kept)]
        if self.rows:
            self._turn_knobs()

    def _cancel(self, number: int) -> None:
        """End a prompt's other samples as aborted; those that never ran have no tokens."""
        self.accepted.add(number)
        for row in self.rows:
            if row.number == number and row.reason is None:
                self.results[number][row.index] = row.sample()
        for waiting in [entry for entry in self.waiting if entry[0] == number]:
            self.waiting.remove(waiting)
            for index in waiting[1]:
                self.results[number][index] = Sample([], [], [], "aborted", "", 0.0)


def _prefill_groups(
    entering: list[tuple[Sequence[int], int, list[int]]],
) -> list[list[tuple[Sequence[int], int, list[int]]]]:
    """Return entering prompts in groups of similar length, the longest first, each of at most PREFILL_TOKENS."""
    groups: list[list[tuple[Sequence[int], int, list[int]]]] = []
    for entry in sorted(entering, key=lambda entry: len(entry[0]), reverse=True):
        longest = len(groups[-1][0][0]) if groups else 0
        if groups and len(entry[0]) * 4 >= longest * 3 and longest * (len(groups[-1]) + 1) <= PREFILL_TOKENS:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _check_length(number: int, prompt: Sequence[int], params: SamplingParams, limit: int | None) -> None:
    if not prompt:
        raise UsageError(f"prompt {number}: no tokens; begin it with BOS or a chat template")
    if limit is not None and len(prompt) + params.max_tokens > limit:
        raise UsageError(
            f"prompt {number}: {len(prompt)} tokens and max_tokens={params.max_tokens} exceed the model's context of "
            f"{limit}; lower max_tokens or shorten the prompt"
        )
