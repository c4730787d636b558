"""A model as judge: which of two responses is better, shown in both orders, or how good is one?

What was asked before is read from a cache, and kept there as it comes in, so that what was cut off goes on without a
repeated question.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import httpx2

from posttrain.sample.backends.posting import Posting, run_to_end
from posttrain.sample.backends.response_cache import Request, ResponseCache
from posttrain.sample.config.judge import JudgeModelConfig
from posttrain.stage.errors import UsageError

Place = Literal["first", "second", "tie"]
CHAT = "/v1/chat/completions"
DEFAULT = "default"
BEST_GRADE = 10
RUBRIC = "A good response does what the request asks, is true, says no more than it has to, and is clear."
_PAIR = """You compare two responses to one request.

{rubric}
Neither length nor the order of the responses counts for anything by itself.

[Request]
{prompt}

[Response A]
{first}
[End of response A]

[Response B]
{second}
[End of response B]

Give your reasons in a few sentences. Then end with one line that is [[A]] where response A is better, [[B]] where \
response B is better, and [[C]] where they are equally good."""
_GRADE = """You grade a response to a request.

{rubric}

[Request]
{prompt}

[Response]
{response}
[End of response]

Give your reasons in a few sentences. Then end with one line that is [[N]], where N is a whole number from 1, the \
worst, to 10, the best."""
_PLACES: dict[str, Place] = {"A": "first", "B": "second", "C": "tie"}


class Pair(NamedTuple):
    """Two responses to one request."""

    prompt: str
    one: str
    other: str
    language: str


class Replies(NamedTuple):
    """What a judge said to each question, and how many calls it took."""

    texts: list[str]
    calls: int


def pair_questions(pair: Pair, rubric: str) -> tuple[str, str]:
    """Return the questions about a pair: the one response first, and the other one first."""
    return (
        _PAIR.format(rubric=rubric, prompt=pair.prompt, first=pair.one, second=pair.other),
        _PAIR.format(rubric=rubric, prompt=pair.prompt, first=pair.other, second=pair.one),
    )


def grade_question(prompt: str, response: str, rubric: str) -> str:
    """Return the question how good a response is."""
    return _GRADE.format(rubric=rubric, prompt=prompt, response=response)


def read_place(reply: str) -> Place | None:
    """Return which of the two places a reply prefers, by its last verdict; None where it has none."""
    found = re.findall(r"\[\[([ABC])\]\]", reply)
    return _PLACES[found[-1]] if found else None


def read_grade(reply: str) -> float | None:
    """Return the grade of a reply, 1 to 10 as 0 to 1; None where it has none."""
    found = re.findall(r"\[\[(\d+)\]\]", reply)
    if not found or not 1 <= int(found[-1]) <= BEST_GRADE:
        return None
    return (int(found[-1]) - 1) / (BEST_GRADE - 1)


def rubric_of(rubrics: Mapping[str, str], language: str) -> str:
    """Return what makes a response in a language good: its own rubric, the default one, or help in general."""
    return rubrics.get(language) or rubrics.get(language.partition("-")[0]) or rubrics.get(DEFAULT, RUBRIC)


class JudgeModel:
    """Asks a judge through its server, many questions at once, each of them only once."""

    def __init__(self, config: JudgeModelConfig, work: Path, where: str) -> None:
        """``work`` is the folder of a cache that the configuration does not name; ``where`` the path of its knobs.

        Raises UsageError where the key's variable is not set.
        """
        headers = {}
        if (variable := config.api_key_variable) is not None:
            if (key := os.environ.get(variable)) is None:
                raise UsageError(f"{where}.api_key_variable: {variable} is not set; export it")
            headers["Authorization"] = f"Bearer {key}"
        self._config, self._where = config, where
        self._posting = Posting(
            config.url,
            timeout_seconds=config.timeout_seconds,
            headers=headers,
            max_retries=config.max_retries,
            backoff_seconds=0.5,
        )
        self._cache = Path(config.cache) if config.cache is not None else work / "judge.sqlite"

    def rubric(self, language: str) -> str:
        """Return what makes a response in a language good."""
        return rubric_of(self._config.rubrics, language)

    def ask(self, questions: Sequence[str]) -> Replies:
        """Return the replies to questions.

        Raises UsageError where that takes more calls than the budget has, before any is made.
        """
        with ResponseCache(self._cache, self._config.cache_bytes) as cache:
            known = {question: cache.get(self._request(question)) for question in questions}
            new = [question for question, reply in known.items() if reply is None]
            most = self._config.max_calls
            if most is not None and len(new) > most:
                raise UsageError(
                    f"{self._where}.max_calls={most}: {len(new)} of {len(questions)} questions are new; ask fewer "
                    "(max_items), or raise it"
                )
            made = run_to_end(self._ask(new, cache)) if new else []
        known |= dict(zip(new, made, strict=True))
        return Replies([known[question] or "" for question in questions], len(new))

    async def _ask(self, questions: Sequence[str], cache: ResponseCache) -> list[str]:
        slots = asyncio.Semaphore(self._config.max_concurrent)

        async def one(client: httpx2.AsyncClient, question: str) -> str:
            async with slots:
                response = await self._posting.post(client, CHAT, self._body(question))
            reply = (self._posting.first_choice(response).get("message") or {}).get("content")
            if not isinstance(reply, str):
                raise self._posting.no_text(response)
            cache.put(self._request(question), reply)
            return reply

        async with self._posting.client() as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(client, question)) for question in questions]
        return [task.result() for task in tasks]

    def _body(self, question: str) -> dict[str, object]:
        message = {"role": "user", "content": question}
        limits = {"max_tokens": self._config.max_tokens, "temperature": 0, "seed": 0}
        return {"model": self._config.model, "messages": [message], **limits}

    def _request(self, question: str) -> Request:
        return Request(self._config.model, question, {"max_tokens": self._config.max_tokens, "temperature": 0}, 0)
