"""Turns of conversations: every form that files have them in gives the same turn, and nothing of it is lost unsaid."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.records import Demonstration
from posttrain.data.sources.adapters_sharegpt import sharegpt
from posttrain.data.sources.reasoning import split_reasoning
from posttrain.data.sources.row_values import RowError
from posttrain.data.sources.turns import prompt_messages, read_message, read_messages, response, says

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
HI = {"role": "user", "content": "Hi"}


def by_assistant(**keys: Any) -> dict[str, Any]:
    return {"role": "assistant", **keys}


FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (by_assistant(content=None, tool_calls=[{"type": "function", "function": CALL}]), CALLED),
    (by_assistant(tool_calls=[CALL]), CALLED),
    (by_assistant(content=" \n", tool_calls=[{"function": {**CALL, "arguments": '{"city": "Oslo"}'}}]), CALLED),
    (by_assistant(content=None, tool_calls='[{"name": "weather", "arguments": {"city": "Oslo"}}]'), CALLED),
    (by_assistant(content=None, function_call={**CALL, "arguments": '{"city": "Oslo"}'}), CALLED),
    (by_assistant(content=None, tool_calls=[{"name": "weather", "parameters": {"city": "Oslo"}}]), CALLED),
    (
        by_assistant(content="I look.", tool_calls=[{"id": "c1", "type": "function", "function": CALL}, CALL]),
        by_assistant(content="I look.", tool_calls=[{**CALL, "id": "c1"}, CALL]),
    ),
    (
        by_assistant(tool_calls=[{"name": "now", "arguments": ""}]),
        by_assistant(content="", tool_calls=[{"name": "now", "arguments": {}}]),
    ),
    ({"role": "tool", "content": "3", "tool_call_id": "c1"}, {"role": "tool", "content": "3", "tool_call_id": "c1"}),
    ({"role": "function", "name": "f", "content": "3"}, {"role": "tool", "content": "3", "name": "f"}),
    ({"role": "tool", "content": ""}, {"role": "tool", "content": ""}),
    ({"role": "system", "content": "", "name": None}, {"role": "system", "content": ""}),
    ({"role": "developer", "content": "Be brief."}, {"role": "developer", "content": "Be brief."}),
    (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "a\nb"},
    ),
    (
        {"role": "user", "content": ["a", {"type": "text", "text": "b", "image": None}]},
        {"role": "user", "content": "a\nb"},
    ),
    (
        by_assistant(content=[{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "a"}]),
        by_assistant(content="a", reasoning_content="so"),
    ),
    *(
        (by_assistant(content="a", **{name: "so"}), by_assistant(content="a", reasoning_content="so"))
        for name in ("reasoning_content", "reasoning", "thinking")
    ),
    (by_assistant(content="<think>\nso\n</think>\n\na"), by_assistant(content="a", reasoning_content="so")),
    (
        by_assistant(content="<think>so</think>a", reasoning_content=" so"),
        by_assistant(content="a", reasoning_content=" so"),
    ),
    (by_assistant(content="a", reasoning="", tool_calls=[], function_call=None), by_assistant(content="a")),
    (by_assistant(content="a", weight=1, train=True), by_assistant(content="a")),
    ({**HI, "weight": 0.0, "train": False}, HI),
]


@pytest.mark.parametrize(("message", "turn"), FORMS)
def test_every_form_of_a_message_gives_its_turn(message: dict[str, Any], turn: dict[str, Any]) -> None:
    read = read_message(message, "messages[1]")
    assert read == turn
    # … which a record takes: the fields are those of its messages.
    ended = read if read["role"] == "assistant" else by_assistant(content="Yes.")
    record = Demonstration(id="x", source="s", prompt=[HI, read], completion=[ended])
    assert record.prompt[1].role == turn["role"]


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        by_assistant(tool_calls=[{**CALL, "arguments": '{"city": '}]),
        "m.tool_calls[0].arguments '{\"city\": ': not JSON (",
    ),
    (by_assistant(tool_calls=[{**CALL, "arguments": "[1]"}]), "m.tool_calls[0].arguments '[1]': must be a JSON object"),
    (by_assistant(tool_calls=[{**CALL, "arguments": {"n": float("nan")}}]), "m.tool_calls[0].arguments.n nan: not a"),
    (
        by_assistant(tool_calls=[{"function": {"arguments": "{}"}}]),
        "m.tool_calls[0].function {'arguments': '{}'}: a call",
    ),
    (
        by_assistant(tool_calls=[{"type": "custom", "name": "f"}]),
        "m.tool_calls[0].type 'custom': only functions can be",
    ),
    (
        by_assistant(tool_calls=[{**CALL, "result": "3"}]),
        "m.tool_calls[0].result '3': a call holds name, arguments and",
    ),
    (by_assistant(tool_calls=[CALL], function_call=CALL), "m: holds tool_calls and function_call; keep one"),
    (by_assistant(tool_calls="weather(Oslo)"), "m.tool_calls 'weather(Oslo)': not JSON ("),
    ({**HI, "tool_calls": [CALL]}, "m: a call in a turn by 'user'; only 'assistant' turns call tools"),
    ({**HI, "name": "Bo"}, "m.name 'Bo': only 'tool' turns have it; remove it"),
    ({**HI, "tool_call_id": "c1"}, "m.tool_call_id 'c1': only 'tool' turns have it; remove it"),
    (
        {**HI, "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        "m.content[0] of type 'image_url': only text",
    ),
    ({**HI, "content": [{"type": "image", "text": None}]}, "m.content[0] of type 'image': only text can be trained on"),
    ({**HI, "content": [{"type": "input_audio", "input_audio": {}}]}, "m.content[0] of type 'input_audio': only text"),
    ({**HI, "content": []}, "m.content '': empty content; write a text or remove the row"),
    ({**HI, "content": {"text": "a"}}, "m.content {'text': 'a'}: must be a text, not dict; convert it"),
    ({"role": "bot", "content": "a"}, "m.role 'bot': must be one of system, developer, user, assistant, tool; rename"),
    ({"role": ["user"], "content": "a"}, "m.role ['user']: must be one of system, developer, user, assistant, tool"),
    (by_assistant(content=""), "m.content '': empty content; write a text or remove the row"),
    (by_assistant(content=None, reasoning="so"), "m.content '': empty content; write a text or remove the row"),
    (by_assistant(content="a", reasoning="so", thinking="no"), "m: reasoning stands twice and differs, 'so' and 'no'"),
    (
        by_assistant(content="<think>so</think>a", reasoning="no"),
        "m: reasoning stands twice and differs, 'so' and 'no'",
    ),
    (by_assistant(content="a", weight=0), "m.weight 0: turns have no weights of their own; remove the key (loss_on="),
    (by_assistant(content="a", weight=0.5), "m.weight 0.5: turns have no weights of their own; remove the key"),
    (by_assistant(content="a", train=False), "m.train False: turns have no weights of their own; remove the key"),
    (by_assistant(content="a", train="yes"), "m.train 'yes': must be true or false, 1 or 0; mend it"),
    ({**HI, "train": True}, "m.train True: a turn by 'user' is not trained; remove the key"),
    (by_assistant(content="a", logprobs=[1]), "m.logprobs [1]: a message has no such key; remove it"),
]


@pytest.mark.parametrize(("message", "fault"), FAULTS)
def test_what_has_no_place_in_a_turn_is_refused_by_name(message: dict[str, Any], fault: str) -> None:
    with pytest.raises(RowError) as caught:
        read_message(message, "m")
    assert str(caught.value).startswith(fault)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>so</think>a", "so", "a"),
        (" <think>\nso\n\nthen\n</think>\n\na\nb\n", "so\n\nthen", "a\nb\n"),
        ("so\n</think>\n\n    code", "so", "    code"),
        ("<think>\n\n</think>\n\na", "", "a"),
        ("</think>\na", "", "a"),
        ("<think>so</think> a", "so", "a"),
        ("so</think>", "so", ""),
    ],
)
def test_reasoning_in_front_of_an_answer_stands_apart(text: str, thought: str, answer: str) -> None:
    assert split_reasoning(text) == (thought, answer)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "<think>never closed",
        "It writes <think>so</think> first.",
        "The mark </think> ends it.",
        "Use `</think>` once.",
    ],
)
def test_an_answer_that_speaks_of_the_marks_stays_whole(text: str) -> None:
    assert split_reasoning(text) == ("", text)


def test_only_a_last_turn_may_say_nothing_and_only_where_that_is_asked_for() -> None:
    silent = by_assistant(content="")
    assert read_messages([HI, silent], "m", may_end_silent=True)[-1] == silent
    for messages, may_end_silent in (([HI, silent], False), ([HI, silent, HI], True)):
        with pytest.raises(RowError, match=r"^m\[1\].content '': empty content"):
            read_messages(messages, "m", may_end_silent=may_end_silent)


def test_lists_may_be_json_text_and_a_text_that_is_another_list_stays_a_text() -> None:
    assert read_messages('[{"role": "user", "content": "Hi"}]', "m") == [HI]
    assert prompt_messages('[{"role": "user", "content": "Hi"}]', "prompt") == [HI]
    for text in ("[1, 2] has which sum?", "[1, 2]", '[{"role": "admin", "content": "x"}]', '[{"role": "user"}]', "[]"):
        assert prompt_messages(text, "prompt") == [{"role": "user", "content": text}]
    with pytest.raises(RowError, match="m 'Hi': must be a non-empty list of messages"):
        read_messages("Hi", "m")


def test_a_response_is_a_text_a_message_or_a_list_of_one() -> None:
    text = "<think>so</think>a"
    wanted = by_assistant(content="a", reasoning_content="so")
    for value in (text, by_assistant(content=text), [by_assistant(content=text)]):
        assert response(value, "responses[0]") == wanted
    assert response("", "r") == response([by_assistant(content="")], "r") == by_assistant(content="")
    with pytest.raises(RowError, match=r"^r\[0\] is a turn by 'user'; a response must be the assistant's"):
        response([HI], "r")


def test_turns_say_the_same_whatever_the_ids_of_their_calls() -> None:
    def called(city: str, **keys: Any) -> tuple[str, ...]:
        return says(by_assistant(content="", tool_calls=[{"name": "w", "arguments": {"city": city}, **keys}]))

    assert called("Oslo", id="1") == called("Oslo", id="2") == called("Oslo")
    assert called("Oslo") != called("Rome")
    assert says(by_assistant(content="a")) != says(by_assistant(content="a", reasoning_content="so"))


def speak(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


def test_sharegpt_turns_call_tools_and_observe() -> None:
    call = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    turns = speak(
        ("human", "Hi"),
        ("function_call", f"<think>so</think>{call}"),
        ("observation", "3 C"),
        ("function_call", f"[{call}, {call}]"),
        ("observation", ""),
        ("gpt", "<think>\nnow\n</think>\nCold."),
    )
    made = sharegpt({"conversations": turns})
    assert made == {
        "prompt": [HI],
        "completion": [
            {**CALLED, "reasoning_content": "so"},
            {"role": "tool", "content": "3 C"},
            {**CALLED, "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": ""},
            by_assistant(content="Cold.", reasoning_content="now"),
        ],
    }
    plain = [HI, by_assistant(content="Cold.")]
    assert sharegpt({"conversations": plain}) == {"prompt": [HI], "completion": plain[1:]}


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        ({"from": "function_call", "value": "weather(Oslo)"}, "conversations[1].value 'weather(Oslo)': not JSON ("),
        ({"from": "gpt", "value": ""}, "conversations[1].value '': empty content; write a text or remove the row"),
        ({"from": "gpt", "value": "a", "weight": 0}, "conversations[1].weight 0: turns have no weights of their own"),
        (
            {"from": "gpt", "value": "a", "image": "x.png"},
            "conversations[1].image 'x.png': a turn has no such key; rem",
        ),
        ({"from": "gpt"}, "conversations[1] {'from': 'gpt'}: must be an object with from and value"),
    ],
)
def test_keys_of_sharegpt_turns_never_vanish(turn: dict[str, Any], fault: str) -> None:
    with pytest.raises(RowError) as caught:
        sharegpt({"conversations": [*speak(("human", "Hi")), turn]})
    assert str(caught.value).startswith(fault)
