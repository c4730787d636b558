"""Sampling through an OpenAI-compatible server, behind the interface of `Sampler`.

Two dialects of `/v1/completions` are spoken. ``vllm`` takes and returns token ids, gives log-probabilities, and knows
every knob. ``transformers`` (`transformers serve`) takes text and gives text alone: its samples have no
log-probabilities, and the ids of their text encoded anew. Its seed is one for the whole server, so requests go one by
one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat.reasoning import special_marks
from posttrain.sample.backends.guided import Structure, guided_fields
from posttrain.sample.backends.posting import Posting, run_to_end
from posttrain.sample.config.asking import Dialect
from posttrain.sample.engine.ending import Ending, said, special_stops
from posttrain.sample.sampling import Accept, FinishReason, Prompts, Sample, SamplingParams
from posttrain.sample.structured.constraint import ConstraintFactory
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import canonical_json

FINISHED: Mapping[Any, FinishReason] = {"stop": "stop", "length": "length"}
"""What servers say of an end; for anything else, such as ``content_filter``, the sample was aborted."""
PROBE = "The weights of the server are those of"
PROBE_TOKENS = 16
EXACT_GAP, ROUNDED_GAP = 1e-3, 0.1
"""Largest difference between the server's log-probabilities and ours that passes for rounding: where both compute in
float32, and where one of them does not."""


class ServerSampler:
    """Samples from a model that a server runs."""

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        dialect: Dialect = "vllm",
        *,
        max_concurrent: int = 64,
        timeout_seconds: float = 600.0,
        processed_logprobs: bool = False,
        headers: Mapping[str, str] | None = None,
        max_retries: int = 5,
        backoff_seconds: float = 0.5,
    ) -> None:
        """``url`` is the server's root, without ``/v1``, and ``model`` the name that it serves the model by.

        Raises UsageError for a URL that holds a password.

        ``processed_logprobs`` says that the server gives the log-probabilities of what it draws from, after all knobs.
        What the rest says of busy servers and headers, `Posting` explains.
        """
        self._posting = Posting(
            url,
            timeout_seconds=timeout_seconds,
            headers=headers,
            max_retries=max_retries,
            backoff_seconds=backoff_seconds,
        )
        self._version: str | None = None
        self._kept: dict[str, Sample] = {}
        self.url, self.model, self.tokenizer, self.dialect = self._posting.url, model, tokenizer, dialect
        self._max_concurrent = max_concurrent if dialect == "vllm" else 1
        self._processed = processed_logprobs

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams],
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
        structure: Structure | None = None,
        accept: Accept | None = None,
    ) -> list[list[Sample]]:
        """Return the samples of each prompt; the n-th of a prompt has the seed ``seed + n``.

        ``structure`` is what each response must be, for the grammar engine of a vLLM server (`guided`). Where the
        server fails half way, what came is kept: the same call again asks for the rest alone.

        A seed gives the same tokens as far as the server keeps its word. A cancelled sample has no tokens here,
        whatever the server had made of it. Servers give the log-probabilities of the model; those of the distribution
        drawn from are known, and given, only at temperature 0 and where no knob is turned. Raises UsageError where the
        server cannot do what is asked, and PosttrainError when it fails.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        for own in each:
            self._check(own)
        if any(constraint is not None for constraint in constraints or ()):
            raise UsageError(
                f"{self.url}: a server cannot run our constraints; sample with Sampler, or give a structure"
            )
        bodies = [self._body(prompt, own) | self._guided(structure) for prompt, own in zip(prompts, each, strict=True)]
        try:
            samples = run_to_end(self._generate(prompts, bodies, each, accept))
        except PosttrainError as error:
            raise self._with_count(error, bodies, each) from None
        for body, own in zip(bodies, each, strict=True):
            for number in range(own.num_samples):
                self._kept.pop(_request(body, own, number), None)
        return samples

    def _with_count(
        self, error: PosttrainError, bodies: Sequence[dict[str, Any]], params: Sequence[SamplingParams]
    ) -> PosttrainError:
        """Return an error that also says what is kept."""
        asked = {_request(b, own, n) for b, own in zip(bodies, params, strict=True) for n in range(own.num_samples)}
        if not (kept := len(asked & self._kept.keys())):
            return error
        return type(error)(f"{error}; {kept} of {len(asked)} samples came before and are kept for the same call again")

    def _guided(self, structure: Structure | None) -> dict[str, Any]:
        """Return the fields that hold a response to a structure, by the server's version, which is asked once."""
        if structure is None:
            return {}
        if self.dialect == "transformers":
            raise UsageError(f"{structure[0]}: transformers serve holds to no structure; use vllm or Sampler")
        if self._version is None:
            with self._posting.blocking_client() as client:
                self._version = _said(client, "/version", "version")
        return guided_fields(structure, self._version)

    async def _generate(
        self, prompts: Prompts, bodies: list[dict[str, Any]], params: list[SamplingParams], accept: Accept | None
    ) -> list[list[Sample]]:
        started = time.perf_counter()
        slots = asyncio.Semaphore(self._max_concurrent)
        tasks: list[list[asyncio.Task[Sample]]] = [[] for _ in bodies]

        async def one(client: httpx2.AsyncClient, prompt: int, number: int) -> Sample:
            request = _request(bodies[prompt], params[prompt], number)
            if (kept := self._kept.get(request)) is not None:
                sample = kept
            else:
                async with slots:
                    sample = await self._sample(client, prompts[prompt], bodies[prompt], params[prompt], number)
                self._kept[request] = sample
            if accept is not None and accept(prompt, sample):
                for other in tasks[prompt]:
                    if other is not asyncio.current_task():
                        other.cancel()  # closes its connection, at which the server stops
            return sample

        async with self._posting.client() as client, asyncio.TaskGroup() as group:
            for prompt, own in enumerate(params):
                for number in range(own.num_samples):
                    tasks[prompt].append(group.create_task(one(client, prompt, number)))
        cancelled = Sample([], [], [], "aborted", "", time.perf_counter() - started)
        return [[cancelled if task.cancelled() else task.result() for task in own] for own in tasks]

    async def _sample(
        self,
        client: httpx2.AsyncClient,
        prompt: Sequence[int],
        body: dict[str, Any],
        params: SamplingParams,
        number: int,
    ) -> Sample:
        started = time.perf_counter()
        answer = await self._posting.post(client, "/v1/completions", body | {"seed": params.seed + number})
        choice = self._posting.first_choice(answer)
        if not isinstance(choice.get("text"), str):
            raise self._posting.no_text(answer)
        reason = FINISHED.get(choice.get("finish_reason"), "aborted")
        seconds = time.perf_counter() - started
        if self.dialect == "transformers":
            ids = self.tokenizer(choice["text"], add_special_tokens=False).input_ids
            own = said(self.tokenizer, prompt, choice["text"])
            return Sample(ids, [], [], reason, seconds=seconds, **own)
        ids, logprobs = self._tokens(choice)
        if special_marks(self.tokenizer).isdisjoint(ids):
            own = said(self.tokenizer, prompt, choice["text"])
        else:  # the server's text is without special tokens
            ends = frozenset([self.tokenizer.eos_token_id, *params.stop_token_ids])
            own = Ending(self.tokenizer, ends, params.stop).said(prompt, ids)
        return Sample(ids, logprobs, self._sampling_logprobs(logprobs, params), reason, seconds=seconds, **own)

    def _tokens(self, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Return the token ids of a choice and their log-probabilities."""
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None:
            raise UsageError(f"{self.url}: gives no token_ids; use a newer vLLM, or dialect=transformers")
        if logprobs is None or None in logprobs or len(logprobs) != len(ids):
            raise PosttrainError(
                f"{self.url}: {len(ids)} tokens with log-probabilities {str(logprobs)[:80]}; serve with them"
            )
        return ids, logprobs

    def _sampling_logprobs(self, logprobs: list[float], params: SamplingParams) -> list[float]:
        """Return the log-probabilities under the distribution that was drawn from, where they can be known."""
        if params.temperature == 0:
            return [0.0] * len(logprobs)
        limits = {
            name: getattr(params, name) for name in ("max_tokens", "stop", "stop_token_ids", "num_samples", "seed")
        }
        plain = params == dataclasses.replace(SamplingParams(), **limits)
        return logprobs if plain or self._processed else []

    def _check(self, params: SamplingParams) -> None:
        if params.num_beams > 1:
            raise UsageError(f"num_beams={params.num_beams}: no beam search through a server; sample with Sampler")
        if params.top_logprobs:
            raise UsageError(f"top_logprobs={params.top_logprobs}: not read from a server; sample with Sampler")
        if self.dialect == "transformers" and any(
            (params.presence_penalty, params.frequency_penalty, params.min_tokens)
        ):
            raise UsageError("presence_penalty, frequency_penalty, min_tokens: not of transformers serve; use vllm")
        if self.dialect == "transformers" and params.logit_bias:
            raise UsageError("logit_bias: transformers serve passes over it in silence; use vllm or Sampler")
        if self.dialect == "transformers" and (marks := special_marks(self.tokenizer)):
            raise UsageError(
                f"{self.tokenizer.decode([min(marks)])}: transformers serve leaves special tokens out, and with them "
                "what tells the answer from the reasoning; use vllm or Sampler"
            )

    def _body(self, prompt: Sequence[int], params: SamplingParams) -> dict[str, Any]:
        if self.dialect == "transformers":
            return self._transformers_body(prompt, params)
        special, texts = special_stops(self.tokenizer, params.stop)
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "min_tokens": params.min_tokens,
            "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()} or None,
            "stop": texts,
            "stop_token_ids": [*params.stop_token_ids, *special],
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _transformers_body(self, prompt: Sequence[int], params: SamplingParams) -> dict[str, Any]:
        knobs: dict[str, Any] = {"do_sample": False}
        if params.temperature > 0:
            knobs = {
                "do_sample": True,
                "temperature": params.temperature,
                "top_k": params.top_k,
                "top_p": params.top_p,
                "min_p": params.min_p or None,
            }
        special, texts = special_stops(self.tokenizer, params.stop)
        knobs |= {
            "max_new_tokens": params.max_tokens,
            "repetition_penalty": params.repetition_penalty,
            "eos_token_id": [self.tokenizer.eos_token_id, *params.stop_token_ids, *special],
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        body = {"model": self.model, "prompt": self._as_text(prompt), "generation_config": json.dumps(knobs)}
        return body | ({"stop": texts} if texts else {})

    def _as_text(self, prompt: Sequence[int]) -> str:
        """Return a text that the server encodes as exactly these token ids.

        Raises UsageError when there is none: a BOS token is left to the server, which adds one, but no more.
        """
        for skipped in (0, 1):
            text: str = self.tokenizer.decode(list(prompt)[skipped:])
            if self.tokenizer(text).input_ids == list(prompt):
                return text
        raise UsageError(
            "a prompt that does not survive decoding and encoding; use a server that takes token ids (vllm)"
        )

    def update_weights(self, directory: Path, model: PreTrainedModel) -> float:
        """Make a vLLM server take the weights of a Hugging Face folder, and check that it did.

        The server must run with ``VLLM_SERVER_DEV_MODE=1`` and see the folder under the same path; requests that run
        are waited for. ``model`` has the same weights: a greedy sample of the server is compared with it. Returns the
        largest difference in log-probability. Raises PosttrainError when that is more than rounding, as happens where
        the server keeps a copy of old weights, and UsageError for a server that cannot update.
        """
        if self.dialect != "vllm":
            raise UsageError("transformers serve cannot change a model's weights; restart it on the new folder")
        with self._posting.blocking_client() as client:
            if client.post("/pause", params={"mode": "wait"}).status_code == httpx2.codes.NOT_FOUND:
                raise UsageError(f"{self.url}: does not update weights; start vLLM with VLLM_SERVER_DEV_MODE=1")
            try:
                kwargs = {"weights_path": str(directory.resolve())}
                reload = {"method": "reload_weights", "kwargs": kwargs}
                self._posting.json_object(client.post("/collective_rpc", json=reload))
                client.post("/reset_prefix_cache").raise_for_status()
            finally:
                client.post("/resume")
            served = served_dtype(client.get("/server_info").text)
        gap = self._logprob_gap(model)
        if gap > largest_gap(model.dtype, served):
            raise PosttrainError(
                f"{self.url}: log-probabilities still differ by {gap:.3g} after the update from {directory}, so old "
                "weights are in use; restart the server on the new folder (docs/serving.md)"
            )
        return gap

    def require_weights(self, model: PreTrainedModel) -> None:
        """Raise PosttrainError where a vLLM server's log-probabilities are not those of ``model``.

        A greedy sample of the server is compared. What `transformers serve` says has none, and passes.
        """
        if self.dialect != "vllm":
            return
        with self._posting.blocking_client() as client:
            served = served_dtype(client.get("/server_info").text)
        if (gap := self._logprob_gap(model)) > largest_gap(model.dtype, served):
            raise PosttrainError(
                f"{self.url}: log-probabilities of {self.model!r} differ by {gap:.3g} from those of the model here; "
                "serve this model, or say by what name it is served"
            )

    @torch.inference_mode()
    def _logprob_gap(self, model: PreTrainedModel) -> float:
        prompt: list[int] = self.tokenizer(PROBE).input_ids
        ((sample,),) = self.generate([prompt], SamplingParams(max_tokens=PROBE_TOKENS, temperature=0))
        ids = torch.tensor([prompt + sample.token_ids], device=model.device)
        logprobs_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        ours = logprobs_TV.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
        return float((ours - torch.tensor(sample.logprobs)).abs().max())


def spoken_at(url: str, headers: Mapping[str, str] | None = None) -> Dialect:
    """Return what the server at a URL speaks: ``transformers`` where it is `transformers serve`, otherwise ``vllm``."""
    asking = Posting(url, timeout_seconds=10.0, headers=headers, max_retries=0, backoff_seconds=0.0)
    with asking.blocking_client() as client:  # vLLM says its version, and nothing of its health but 200
        is_transformers = not _said(client, "/version", "version") and _said(client, "/health", "status") == "ok"
    return "transformers" if is_transformers else "vllm"


def _said(client: httpx2.Client, path: str, name: str) -> str:
    """Return a field of a server's JSON answer; an empty text where it gives no such thing, as a proxy's page."""
    try:
        answer = client.get(path)
        return str(answer.json()[name]) if answer.status_code == httpx2.codes.OK else ""
    except (httpx2.TransportError, ValueError, KeyError, TypeError):
        return ""


def _request(body: Mapping[str, Any], params: SamplingParams, number: int) -> str:
    """Return what tells a request from others."""
    return canonical_json({**body, "seed": params.seed + number})


def served_dtype(server_info: str) -> str | None:
    """Return the dtype that a vLLM server computes in, by what its ``/server_info`` says; None where it does not."""
    found = re.search(r"\bdtype\W+(?:torch\.)?(float32|bfloat16|float16)", server_info)
    return found[1] if found is not None else None


def largest_gap(ours: torch.dtype, served: str | None) -> float:
    """Return how far log-probabilities may lie apart that one model gets in two places."""
    return EXACT_GAP if ours == torch.float32 and served == "float32" else ROUNDED_GAP
