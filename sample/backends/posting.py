"""Requests to a server that may be busy, or lose the connection: they are sent again, and what is no answer is said."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

from posttrain.sample.backends.credentials import require_no_credentials, without_secrets
from posttrain.stage.errors import PosttrainError, UsageError

T = TypeVar("T")
BUSY = frozenset([408, 429, 500, 502, 503, 504])
"""Answers after which a request is sent again."""


class Posting:
    """Posts JSON to one server.

    A request that finds the server busy, or loses its connection, is sent again up to ``max_retries`` times, after a
    pause that begins at about ``backoff_seconds`` and doubles. ``headers`` go with every request; those that carry keys
    are `credentials`, and no message shows them.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        headers: Mapping[str, str] | None,
        max_retries: int,
        backoff_seconds: float,
    ) -> None:
        """Raise UsageError for a URL that holds a password."""
        require_no_credentials(url)
        self.url, self.timeout, self.headers = url.rstrip("/"), timeout_seconds, dict(headers or {})
        self._max_retries, self._backoff = max_retries, backoff_seconds
        self._answered = False

    def client(self) -> httpx2.AsyncClient:
        """Return a client, to be entered, whose connections requests share."""
        return httpx2.AsyncClient(base_url=self.url, timeout=self.timeout, headers=self.headers)

    def blocking_client(self) -> httpx2.Client:
        """Return a client, to be entered, whose requests are waited for."""
        return httpx2.Client(base_url=self.url, timeout=self.timeout, headers=self.headers)

    async def post(self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        """Return the answer to a request, asking again while the server is busy or the connection breaks.

        Raises UsageError where no server is, and PosttrainError where it does not answer.
        """
        for attempt in range(self._max_retries + 1):
            last = attempt == self._max_retries
            try:
                response = await client.post(path, json=body)
            except httpx2.TimeoutException:
                raise PosttrainError(f"{self.url}: no answer within {self.timeout:g} s") from None
            except httpx2.TransportError as error:
                if isinstance(error, httpx2.ConnectError) and not self._answered:
                    raise UsageError(f"{self.url}: no server answers; start one as docs/serving.md says") from None
                if last:
                    raise PosttrainError(f"{self.url}: the connection broke {attempt + 1} times ({error})") from None
            else:
                self._answered = True
                if response.status_code not in BUSY or last:
                    return response
            await asyncio.sleep(
                self._backoff * 2**attempt * random.uniform(0.5, 1.5)
            )  # so that all do not come at once
        raise AssertionError("the last attempt returns or raises")

    def first_choice(self, response: httpx2.Response) -> dict[str, Any]:
        """Return the first choice of an answer, or an empty dictionary where it has none."""
        choices = self.json_object(response).get("choices")
        return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}

    def json_object(self, response: httpx2.Response) -> dict[str, Any]:
        """Return the JSON object of an answer. Raises PosttrainError where it is none."""
        if response.status_code != httpx2.codes.OK:
            raise PosttrainError(f"{response.url}: HTTP {response.status_code}: {self._shown(response)}")
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            kind = response.headers.get("content-type", "no type")
            raise PosttrainError(f"{response.url}: {kind} instead of a JSON object: {self._shown(response)}")
        return body

    def no_text(self, response: httpx2.Response) -> PosttrainError:
        """Return the error for an answer without a text, such as a page of a proxy."""
        return PosttrainError(f"{response.url}: an answer without a text: {self._shown(response)}")

    def _shown(self, response: httpx2.Response) -> str:
        return without_secrets(" ".join(response.text.split()), self.headers)[:300]


def run_to_end(working: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in a thread of its own where an event loop, such as a notebook's, runs already.

    Of several that fail together, the first one's error is raised.
    """
    try:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(working)
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, working).result()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
