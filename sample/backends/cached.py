"""A sampler that remembers: what was asked before is read from the response cache."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from posttrain.sample.backends.response_cache import Request, ResponseCache
from posttrain.sample.sampling import Accept, Generates, Prompts, Sample, SamplingParams


class CachedSampler:
    """Puts a cache before a sampler; all samples of a prompt are one entry."""

    def __init__(
        self,
        sampler: Generates,
        cache: ResponseCache,
        model_digest: str,
        *,
        near: float | None = None,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """``near`` is the similarity from which the samples of another prompt, compared by ``text_of``, will do."""
        if near is not None and text_of is None:
            raise ValueError("near duplicates are found by words; give text_of")
        self._sampler, self._cache, self._digest = sampler, cache, model_digest
        self._near, self._text_of = near, text_of

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, from the cache where it has them.

        With ``accept`` the samples depend on more than the request, so nothing is read or kept.
        """
        if accept is not None:
            return self._sampler.generate(prompts, params, accept=accept)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        requests = [_request(self._digest, prompt, own) for prompt, own in zip(prompts, each, strict=True)]
        found = [self._look_up(request, prompt) for request, prompt in zip(requests, prompts, strict=True)]
        missing = [place for place, samples in enumerate(found) if samples is None]
        made = self._sampler.generate([prompts[p] for p in missing], [each[p] for p in missing]) if missing else []
        for place, samples in zip(missing, made, strict=True):
            text = self._text_of(prompts[place]) if self._text_of is not None else None
            self._cache.put(requests[place], json.dumps([dataclasses.asdict(sample) for sample in samples]), text)
        new = iter(made)
        return [samples if samples is not None else next(new) for samples in found]

    def _look_up(self, request: Request, prompt: Sequence[int]) -> list[Sample] | None:
        response = self._cache.get(request)
        if response is None and self._near is not None and self._text_of is not None:
            near = self._cache.nearest(request, self._text_of(prompt), self._near)
            response = near.response if near is not None else None
        return [Sample(**fields) for fields in json.loads(response)] if response is not None else None


def _request(model_digest: str, prompt: Sequence[int], params: SamplingParams) -> Request:
    plain = {name: value for name, value in dataclasses.asdict(params).items() if name != "seed"}
    plain["text"] = "answer"  # older entries have the reasoning in it
    plain["logit_bias"] = {str(token): repr(bias) for token, bias in params.logit_bias.items()}  # JSON has no infinity
    return Request(model_digest, list(prompt), plain, params.seed)
