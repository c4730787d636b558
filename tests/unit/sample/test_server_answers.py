"""A server that is busy, breaks off, or answers with something else: over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_server import Scripted, whole
from structured_data import json_tokenizer

from posttrain.sample.backends.credentials import credentials
from posttrain.sample.backends.guided import Guided, Structure
from posttrain.sample.backends.server import ServerSampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import PosttrainError, UsageError


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.end()


@pytest.mark.parametrize("trouble", [429, 503, 502, 0])
def test_a_busy_server_or_a_broken_connection_loses_nothing(trouble: int, scripted: Scripted) -> None:
    scripted.answers = [whole(), (trouble, "busy"), (trouble, "busy"), whole()]
    samples = scripted.sampler(max_concurrent=1).generate([[5], [6], [7]], SamplingParams(max_tokens=2))
    assert [own[0].text for own in samples] == ["ab"] * 3
    assert len(scripted.headers) == 5
    scripted.answers = [(trouble, "busy")]
    with pytest.raises(PosttrainError, match=str(trouble) if trouble else "the connection broke 3 times"):
        scripted.sampler(max_retries=2).generate([[5]], SamplingParams(max_tokens=2))
    assert len(scripted.headers) == 8


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, "<html>Sign in</html>"), "instead of a JSON object: <html>Sign in"),
        ((200, "[]"), "instead of a JSON object"),
        ((200, "{}"), "an answer without a text"),
        (whole(token_ids=None), "gives no token_ids"),
        (whole(logprobs=None), "1 tokens with log-probabilities None"),
        (whole(logprobs={"token_logprobs": [None]}), r"1 tokens with log-probabilities \[None\]"),
        ((401, "no key"), "HTTP 401: no key"),
    ],
)
def test_what_is_no_sample_is_said_in_one_line(answer: tuple[int, str], message: str, scripted: Scripted) -> None:
    scripted.answers = [answer]
    with pytest.raises(PosttrainError, match=message):
        scripted.sampler().generate([[5]], SamplingParams(max_tokens=2))
    assert len(scripted.headers) == 1


@pytest.mark.parametrize(("said", "reason"), [("stop", "stop"), ("length", "length"), ("content_filter", "aborted")])
def test_what_was_filtered_did_not_end(said: str, reason: str, scripted: Scripted) -> None:
    scripted.answers = [whole(finish_reason=said)]
    ((sample,),) = scripted.sampler().generate([[5]], SamplingParams(max_tokens=2))
    assert (sample.finish_reason, sample.ended) == (reason, reason == "stop")


def test_a_key_and_headers_go_with_every_request(scripted: Scripted) -> None:
    scripted.answers = [whole()]
    headers = credentials({"POSTTRAIN_API_KEY": "secret", "POSTTRAIN_API_HEADERS": '{"X-Team": "blue"}'})
    scripted.sampler(headers=headers).generate([[5]] * 2, SamplingParams(max_tokens=2))
    assert [(own["Authorization"], own["X-Team"]) for own in scripted.headers] == [("Bearer secret", "blue")] * 2


def test_no_message_shows_a_key(scripted: Scripted) -> None:
    scripted.answers = [(401, "Incorrect key: sk-123456 of team-blue")]
    headers = {"Authorization": "Bearer sk-123456", "X-Team": "team-blue"}
    with pytest.raises(PosttrainError, match=r"HTTP 401: Incorrect key: \*\*\* of \*\*\*$"):
        scripted.sampler(headers=headers).generate([[5]], SamplingParams(max_tokens=2))
    for broken in ("sk-123456", '["sk-123456"]', '{"X": 123456}'):
        with pytest.raises(UsageError, match="POSTTRAIN_API_HEADERS: not a JSON object of texts") as caught:
            credentials({"POSTTRAIN_API_HEADERS": broken})
        assert "123456" not in str(caught.value)
    with pytest.raises(UsageError, match=r"^http://host:1: a URL with a user or password") as refused:
        ServerSampler("http://me:sk-123456@host:1", "m", json_tokenizer())
    assert "123456" not in str(refused.value)


def test_what_came_before_a_server_died_is_kept(scripted: Scripted) -> None:
    scripted.answers = [whole(), whole(text="cd"), (500, "dead")]
    sampler = scripted.sampler(max_concurrent=1, max_retries=0)
    prompts, params = [[5], [6], [7]], SamplingParams(max_tokens=2)
    with pytest.raises(PosttrainError, match=r"HTTP 500: dead; 2 of 3 samples came before and are kept"):
        sampler.generate(prompts, params)
    scripted.answers = [whole(text="ef")]
    scripted.bodies.clear()
    assert [own[0].text for own in sampler.generate(prompts, params)] == ["ab", "cd", "ef"]
    assert [body["prompt"] for body in scripted.bodies] == [[7]]
    assert [own[0].text for own in sampler.generate(prompts, params)] == ["ef"] * 3  # a new call, asked anew


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("version", "structure", "fields"),
    [
        ("0.11.0", ("schema", SCHEMA), {"structured_outputs": {"json": SCHEMA}}),
        ("0.33.0", ("regex", "[ab]+"), {"structured_outputs": {"regex": "[ab]+"}}),
        ("1.0.0", ("choices", "ab, b"), {"structured_outputs": {"choice": ["ab", "b"]}}),
        (None, ("grammar", 'start: "a"\n'), {"structured_outputs": {"grammar": 'start: "a"\n'}}),
        ("0.10.2", ("schema", SCHEMA), {"guided_json": SCHEMA}),
        ("0.9.1", ("choices", "ab, b"), {"guided_choice": ["ab", "b"]}),
    ],
)
def test_a_server_is_told_of_a_structure_in_the_words_of_its_version(
    version: str | None, structure: Structure, fields: dict[str, Any], scripted: Scripted
) -> None:
    scripted.version, scripted.answers = version, [whole()]
    plain, guided = scripted.sampler(), scripted.sampler()
    plain.generate([[5]], SamplingParams(max_tokens=2))
    guided.generate([[5]], SamplingParams(max_tokens=2), structure=structure)
    without, told = scripted.bodies
    assert {name: value for name, value in told.items() if name not in without} == fields


def test_responses_that_a_server_did_not_hold_to_the_structure_are_counted(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.answers = [whole(text='{"n":1}'), whole(text='{"n":"one"}'), whole(text='{"n', finish_reason="length")]
    sampler = Guided(scripted.sampler(max_concurrent=1), ("schema", SCHEMA))
    sampler.generate([[5], [6], [7]], SamplingParams(max_tokens=2))
    assert [line.partition(":")[0] for line in caplog.messages if "asked for" in line] == [
        "1 of 2 responses that ended are not of the schema that was asked for"
    ]
    with pytest.raises(UsageError, match="grammar sql: ships with our own engine"):
        Guided(scripted.sampler(), ("grammar", "sql")).generate([[5]], SamplingParams(max_tokens=2))


def test_a_running_event_loop_is_no_hindrance(scripted: Scripted) -> None:
    scripted.answers = [whole()]

    async def notebook() -> str:
        return scripted.sampler().generate([[5]], SamplingParams(max_tokens=2))[0][0].text

    assert asyncio.run(notebook()) == "ab"


def test_no_server_at_all_is_said_at_once() -> None:
    with pytest.raises(UsageError, match="no server answers"):
        ServerSampler("http://127.0.0.1:9", "m", json_tokenizer()).generate([[5]], SamplingParams(max_tokens=2))
