"""Sampling from a causal language model.

One loop over the model's forward: prompts are run once and shared by their samples, every running sample takes a token
per step, ended samples leave the batch and waiting prompts enter.

Letters of array shapes: B rows of the batch, V tokens of the vocabulary, W words of a bit mask.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.load import evaluating
from posttrain.sample.engine.beam import Search, beam_search
from posttrain.sample.engine.decoder import Decoder, shared_tokens
from posttrain.sample.engine.ending import Ending, end_tokens
from posttrain.sample.engine.history import History
from posttrain.sample.engine.logits import add_bias, choose, knobs_of, log_probabilities, most_likely
from posttrain.sample.engine.requests import check_bias, check_length, length_groups, prefill_groups
from posttrain.sample.engine.running import Running
from posttrain.sample.sampling import Accept, OnToken, Prompts, Sample, SamplingParams
from posttrain.sample.structured.constraint import ConstraintFactory, apply_bitmask, mask_words
from posttrain.stage import heartbeat
from posttrain.stage.errors import NonFiniteLossError, PosttrainError, UsageError

log = logging.getLogger(__name__)

_Asked = tuple[Sequence[ConstraintFactory | None], Accept | None, OnToken | None]


class Sampler:
    """Continues prompts with samples of a model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_size: int = 64,
        max_batch_tokens: int | None = None,
    ) -> None:
        """``max_batch_size`` is the number of samples that run at once, a matter of memory and speed only.

        ``max_batch_tokens`` lets fewer run where they are long: as many as it has room for, each with the tokens of its
        prompt and ``max_tokens``, and one in any case.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.max_batch_tokens = max_batch_tokens
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
        for number, (prompt, request) in enumerate(zip(prompts, each, strict=True)):
            check_bias(number, request, self.model.config.get_text_config().vocab_size)
            check_length(number, prompt, request, self.model.config)
        factories = constraints if constraints is not None else [None] * len(prompts)
        for number, (factory, request) in enumerate(zip(factories, each, strict=True)):
            if factory is not None and request.min_tokens:
                raise UsageError(f"prompt {number}: min_tokens={request.min_tokens}: a grammar says where it may end")
        if any(request.num_beams > 1 for request in each):
            return self._search(prompts, each, factories)
        with torch.inference_mode(), evaluating(self.model):
            return self._run_in_groups(prompts, each, (factories, accept, on_token))

    def ending(self, params: SamplingParams) -> Ending:
        """Return where samples of a request end."""
        return Ending(self.tokenizer, self.ends.union(params.stop_token_ids), params.stop, params.min_tokens)

    def _run_in_groups(self, prompts: Prompts, params: Sequence[SamplingParams], asked: _Asked) -> list[list[Sample]]:
        """Run prompts whose samples are of similar length together, and with fewer rows where memory runs out."""
        results: list[dict[int, Sample]] = [{} for _ in prompts]
        accepted: set[int] = set()
        rows = self.max_batch_size
        for numbers in length_groups(prompts, params, rows):
            longest = max(len(prompts[number]) + params[number].max_tokens for number in numbers)
            room = max(1, (self.max_batch_tokens or longest * rows) // longest)
            while any(len(results[number]) < params[number].num_samples for number in numbers):
                try:
                    _Run(self, prompts, params, asked, (results, accepted), numbers, min(rows, room)).finish()
                except RuntimeError as error:
                    if not _out_of_memory(error) or asked[2] is not None:
                        raise
                    rows = min(rows, room)
                    if rows == 1:
                        raise PosttrainError(
                            f"out of memory at one sample ({error}); shorten prompts or max_tokens"
                        ) from None
                    rows //= 2
                    log.warning("out of memory: going on with %d samples at once", rows)
                if self.model.device.type == "cuda" and rows < self.max_batch_size:
                    torch.cuda.empty_cache()
        return [[samples[index] for index in sorted(samples)] for samples in results]

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
        prompts: Prompts,
        params: Sequence[SamplingParams],
        asked: _Asked,
        found: tuple[list[dict[int, Sample]], set[int]],
        numbers: Sequence[int],
        rows: int,
    ) -> None:
        """``numbers`` are the prompts to run, ``rows`` at once; ``found`` has samples and accepted prompts so far."""
        self.sampler, self.prompts, self.params = sampler, prompts, params
        self.constraints, self.accept, self.on_token = asked
        self.results, self.accepted = found
        missing = {n: [i for i in range(params[n].num_samples) if i not in self.results[n]] for n in numbers}
        lengths = {number: len(prompts[number]) + params[number].max_tokens for number in numbers}
        first = sorted(numbers, key=lambda number: lengths[number], reverse=True)  # short ones then fill the gaps
        self.waiting: deque[tuple[int, list[int]]] = deque((n, missing[n]) for n in first if missing[n])
        samples = sum(map(len, missing.values()))
        self.most = min(rows, samples)
        longest = max(lengths.values(), default=0)
        self.decoder = Decoder(sampler.model, self.most, longest, others_wait=samples > rows)
        self.rows: list[Running] = []
        self.logits_BV = torch.empty(0)
        self.bitmask_BW = np.empty((0, 0), np.int32)

    def finish(self) -> None:
        """Run until nothing runs or waits."""
        while self.rows or self.waiting:
            heartbeat.pulse()
            self._admit()
            self._take_tokens()
            self._run_ahead()
            self._drop_ended()
            if self.rows:
                tokens_B = torch.tensor([row.tokens[-1] for row in self.rows])
                self.logits_BV = torch.empty(0)  # of a large vocabulary two are too many
                self.logits_BV = self.decoder.step(tokens_B)

    def _admit(self) -> None:
        """Let waiting prompts in once an eighth of the rows is free, since a forward of a few rows is as slow."""
        free = self.most - len(self.rows)
        if self.rows and free < max(1, self.most // 8):
            return
        entering: list[tuple[int, list[int]]] = []
        while self.waiting and free:
            prompt, indices = self.waiting[0]
            if len(indices) > free and (self.rows or entering) and not self._worth_parting(prompt, free):
                break  # together with its other samples, so that the prompt is run once
            entering.append((prompt, indices[:free]))
            del indices[:free]
            free -= len(entering[-1][1])
            if not indices:
                self.waiting.popleft()
        logits = [self.logits_BV] if self.rows else []
        entries = [(self.prompts[prompt], prompt, indices) for prompt, indices in entering]
        shared = shared_tokens([ids for ids, _, _ in entries], self.decoder.prefix) if entries else 0
        for group in prefill_groups(entries, shared):
            logits.append(self.decoder.admit([ids for ids, _, _ in group], [len(indices) for _, _, indices in group]))
            self.rows += [self._start(prompt, index) for _, prompt, indices in group for index in indices]
        if entering:
            self.logits_BV = torch.cat(logits)
            self._turn_knobs()

    def _worth_parting(self, number: int, free: int) -> bool:
        """Return whether to run a prompt again for some of its samples, rather than wait until all have room."""
        return 2 * self.params[number].num_samples > self.most and 4 * free >= self.most

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
        self.history = History(rows, width, device)
        bound = any(row.constraint is not None for row in rows)
        self.untouched = self.knobs.plain and self.biases is None and self.history.idle and not bound
        if bound and not self.bitmask_BW.size:
            self.bitmask_BW = np.zeros((self.most, mask_words(width)), np.int32)

    def _require_numbers(self) -> None:
        """Raise NonFiniteLossError where the model gives what is no logit, of which no token can be drawn."""
        broken_B = ~self.logits_BV.amax(-1).isfinite()  # a maximum is NaN where any of its row is
        if bool(broken_B.any()):
            row = self.rows[int(broken_B.nonzero()[0])]
            raise NonFiniteLossError(
                f"prompt {row.number}: the model's logits are not finite after {len(row.tokens)} tokens; its weights "
                "are broken, or overflow in their precision: try another dtype"
            )

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
        self.history.note(torch.arange(len(tokens)), tokens_B)
        logprobs = sampling_logprobs
        if not self.untouched:
            logprobs = log_probabilities(self.logits_BV, tokens_B).tolist()
        if any(map(math.isnan, logprobs)):
            self._require_numbers()
        self._note_most_likely(everyone, self.logits_BV[:, None])
        for place, sampled in enumerate(self.rows):
            self._append(sampled, tokens[place], logprobs[place], sampling_logprobs[place])

    def _draw(self, places: list[int], attempt: int) -> tuple[list[int], list[float]]:
        """Return a token for some rows, and its log-probability under the distribution that it was drawn from."""
        everyone = len(places) == len(self.rows)
        knobs = self.knobs if everyone else self.knobs.take(torch.tensor(places, device=self.decoder.device))
        logits_BV = self._masked_logits(places, everyone)
        uniforms = np.stack([self.rows[place].draws(attempt) for place in places])
        if logits_BV.is_cuda:  # where an index out of range ends the process
            self._require_numbers()
        try:
            tokens_B, logprobs_B = choose(logits_BV, knobs, torch.from_numpy(uniforms).to(logits_BV.device))
        except (IndexError, RuntimeError):
            self._require_numbers()
            raise
        tokens, logprobs = tokens_B.tolist(), logprobs_B.tolist()
        for number, place in enumerate(places):
            if self.rows[place].forced:
                tokens[number], logprobs[number] = self.rows[place].forced[0], 0.0
        return tokens, logprobs

    def _masked_logits(self, places: list[int], everyone: bool) -> Tensor:
        """Return logits after penalty, bias and constraint; the model's own where a row has none of them."""
        part = slice(None) if everyone else torch.tensor(places, device=self.decoder.device)
        logits_BV = self.logits_BV[part]
        logits_BV = self.history.weigh(logits_BV, places, part)
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

    def _note_most_likely(self, places: Sequence[int], logits_PTV: Tensor) -> None:
        """Note the most likely tokens at the next places of rows that ask for them, given the logits of each place."""
        asking = [number for number, place in enumerate(places) if self.rows[place].params.top_logprobs]
        if not asking:
            return
        most = max(self.rows[places[number]].params.top_logprobs for number in asking)
        ids_PTK, logprobs_PTK = most_likely(logits_PTV[asking].flatten(0, 1), most)
        shape = (len(asking), -1)
        own = zip(asking, ids_PTK.unflatten(0, shape).tolist(), logprobs_PTK.unflatten(0, shape).tolist(), strict=True)
        for number, ids_TK, logprobs_TK in own:
            for ids, logprobs in zip(ids_TK, logprobs_TK, strict=True):
                self.rows[places[number]].note(ids, logprobs)

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
        self._note_most_likely(places, logits_PTV)
        for place, tokens, row_logprobs in zip(places, forced, logprobs, strict=True):
            row = self.rows[place]
            for token, logprob in zip(tokens, row_logprobs, strict=True):
                if row.reason is None and row.take(token):
                    self._append(row, token, logprob, 0.0)
        self.history.note(torch.tensor(places)[:, None], torch.tensor(forced))

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


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
