"""Tools and calls that stand as marked text become definitions and calls, or stay the text that they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.data.sources.hermes import read_marked_text
from posttrain.data.sources.row_values import RowError

FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
ASK = {"role": "user", "content": "Oslo?"}
DONE = {"role": "assistant", "content": "3 C."}
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "Here are the available tools:<tools> [{}] </tools>For each function call return a json object within "
    "<tool_call></tool_call> XML tags as follows:\n"
    "<tool_call>\n{{'arguments': <args-dict>, 'name': <name>}}\n</tool_call>"
)
QWEN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{}\n{}\n</tools>\n\nFor each function call, return a "
    "json object within <tool_call></tool_call> tags:\n"
    '<tool_call>\n{{"name": <name>, "arguments": <args>}}\n</tool_call>'
)


def row(system: str | None, said: str, result: str = "3 C") -> dict[str, Any]:
    lead = [] if system is None else [{"role": "system", "content": system}]
    calling = {"role": "assistant", "content": said}
    return {"prompt": [*lead, ASK, calling, {"role": "tool", "content": result}], "completion": [DONE]}


def call(value: Any = CALL) -> str:
    return f"<tool_call>\n{json.dumps(value)}\n</tool_call>"


@pytest.mark.parametrize(
    ("system", "tools", "rest"),
    [
        (HERMES.format(json.dumps(TOOL)), [TOOL], None),
        (QWEN.format(json.dumps(TOOL), json.dumps(FUNCTION)), [TOOL, TOOL], None),
        ("Be brief.\n\n" + QWEN.format(json.dumps(TOOL), json.dumps(TOOL)), [TOOL, TOOL], "Be brief."),
        (f"Be brief.\n<tools>{json.dumps([FUNCTION])}</tools>\nBe kind.", [TOOL], "Be brief.\n\nBe kind."),
        (f"<tools>[{FUNCTION!r}]</tools>", [TOOL], None),
    ],
)
def test_definitions_leave_the_system_turn(system: str, tools: list[Any], rest: str | None) -> None:
    made, read = read_marked_text(row(system, "None is needed."))
    lead = [] if rest is None else [{"role": "system", "content": rest}]
    assert read
    assert made["tools"] == tools
    assert made["prompt"][: len(lead) + 1] == [*lead, ASK]


@pytest.mark.parametrize(
    ("said", "content", "calls"),
    [
        (call(), "", [CALL]),
        (f"I look.\n{call()}", "I look.", [CALL]),
        (call() + "\n" + call({"name": "now"}), "", [CALL, {"name": "now", "arguments": {}}]),
        (f"<tool_call>{CALL!r}</tool_call>", "", [CALL]),
        (call({**CALL, "arguments": json.dumps(CALL["arguments"])}), "", [CALL]),
    ],
)
def test_calls_leave_the_text_of_an_answer(said: str, content: str, calls: list[Any]) -> None:
    made, read = read_marked_text(row(None, said))
    assert read
    assert made["prompt"][1] == {"role": "assistant", "content": content, "tool_calls": calls}
    assert "tools" not in made


def test_each_result_is_a_turn_of_its_own() -> None:
    results = '<tool_response>\n{"c": 3}\n</tool_response>\n<tool_response>\n4\n</tool_response>'
    made, _ = read_marked_text(row(None, call() + call(), results))
    assert made["prompt"][2:] == [{"role": "tool", "content": '{"c": 3}'}, {"role": "tool", "content": "4"}]


@pytest.mark.parametrize(
    ("said", "result"),
    [
        ("The mark <tool_call> opens a call.", "3 C"),
        ("<tool_call>weather(Oslo)</tool_call>", "3 C"),
        (call() + " and so on", "3 C"),
        (call([CALL, CALL]), "3 C"),
        (call(), "<tool_response>3 C"),
        ("None is needed.", "3 C"),
    ],
)
def test_a_row_of_which_a_part_cannot_be_read_stays_as_it_is(said: str, result: str) -> None:
    plain = row("Be brief.", said, result)
    assert read_marked_text(plain) == (plain, False)
    broken = row("<tools>[{]</tools>", call())
    assert read_marked_text(broken) == (broken, False)


def test_responses_of_comparisons_call_too() -> None:
    made, read = read_marked_text({"prompt": [ASK], "responses": [{"role": "assistant", "content": call()}, DONE]})
    assert read
    assert made["responses"] == [{"role": "assistant", "content": "", "tool_calls": [CALL]}, DONE]


def test_a_column_of_tools_and_the_system_turn_must_agree() -> None:
    told = row(f"<tools>{json.dumps([FUNCTION])}</tools>", call())
    described = {"type": "function", "function": {**FUNCTION, "description": "Says how warm it is."}}
    made, _ = read_marked_text({**told, "tools": [described]})
    assert made["tools"] == [described]
    other = {"type": "function", "function": {"name": "now"}}
    with pytest.raises(RowError, match=r"^tools \['now'\]: the system turn defines others, \['weather'\]; keep one"):
        read_marked_text({**told, "tools": [other]})
