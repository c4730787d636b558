"""A sampler that remembers: what was asked before is read from the response cache."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from importlib import metadata, resources

from posttrain.sample.backends.response_cache import Request, ResponseCache
from posttrain.sample.sampling import Accept, Generates, Prompts, Sample, SamplingParams
from posttrain.stage.files import sha256_text


class CachedSampler:
    """Puts a cache before a sampler; all samples of a prompt are one entry."""

    def __init__(self, sampler: Generates, cache: ResponseCache, model_digest: str) -> None:
        self._sampler, self._cache, self._digest = sampler, cache, model_digest

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
        found = [self._look_up(request) for request in requests]
        missing = [place for place, samples in enumerate(found) if samples is None]
        made = self._sampler.generate([prompts[p] for p in missing], [each[p] for p in missing]) if missing else []
        for place, samples in zip(missing, made, strict=True):
            self._cache.put(requests[place], json.dumps([dataclasses.asdict(sample) for sample in samples]))
        new = iter(made)
        return [samples if samples is not None else next(new) for samples in found]

    def _look_up(self, request: Request) -> list[Sample] | None:
        response = self._cache.get(request)
        return [Sample(**fields) for fields in json.loads(response)] if response is not None else None


@functools.cache
def engine() -> dict[str, str]:
    """Return what besides a request decides its samples: versions, and a digest of the engine's code."""
    files = sorted(resources.files("posttrain.sample.engine").iterdir(), key=lambda file: file.name)
    code = [file.read_text(encoding="utf-8") for file in files if file.name.endswith(".py")]
    versions = {name: metadata.version(name) for name in ("posttrain", "torch", "transformers")}
    return {**versions, "code": sha256_text("\0".join(code))}


def _request(model_digest: str, prompt: Sequence[int], params: SamplingParams) -> Request:
    plain = {name: value for name, value in dataclasses.asdict(params).items() if name != "seed"}
    plain["engine"] = engine()
    plain["logit_bias"] = {str(token): repr(bias) for token, bias in params.logit_bias.items()}  # JSON has no infinity
    return Request(model_digest, list(prompt), plain, params.seed)
