"""Calls of tools in responses of every form, judged by their values and by the tools' own schemas."""

from __future__ import annotations

import json

import pytest

from posttrain.data.checks.calls import Call, calls_in
from posttrain.data.checks.scorers import check_reference, score
from posttrain.stage.errors import UsageError

PARIS = {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}])
FORMS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"days": 2, "city": "Paris"}}\n</tool_call>',
    "llama": '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2.0}}',
    "mistral": '[{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}, "id": "abcdefghi"}]',
    "openai": json.dumps({"function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 2}'}}),
    "deepseek": 'function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris", "days": 2}\n```',
    "deepseek, decoded": 'functionget_weather\n```json\n{"city": "Paris", "days": 2}\n```',
    "gpt-oss": ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris", "days": 2}<|call|>',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_in_any_form_is_the_same_call(form: str) -> None:
    assert calls_in(FORMS[form]) == [Call("get_weather", {"city": "Paris", "days": 2})]
    assert score("call", f"Let me see.\n{FORMS[form]}", json.dumps([PARIS])) == 1
    assert score("valid_call", FORMS[form], TOOLS) == 1


@pytest.mark.parametrize(
    ("response", "wanted", "right"),
    [
        (json.dumps(OSLO) + "\n" + json.dumps(PARIS), [PARIS, OSLO], 1),
        (json.dumps(PARIS), [PARIS, OSLO], 0),
        (json.dumps(PARIS) * 2, [PARIS], 0),
        ("It is sunny.", [], 1),
        (json.dumps(PARIS), [], 0),
        ('{"name": "get_weather", "arguments": {"city": "Paris", "days": true}}', [PARIS], 0),
        ('{"city": "Paris", "days": 2}', [PARIS], 0),
    ],
)
def test_the_wanted_calls_and_no_others(response: str, wanted: list[object], right: float) -> None:
    assert score("call", response, json.dumps(wanted)) == right


@pytest.mark.parametrize(
    "response",
    [
        "It is sunny.",
        '{"name": "get_wether", "arguments": {"city": "Paris"}}',
        '{"name": "get_weather", "arguments": {"days": 2}}',
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": "two"}}',
        '{"name": "get_weather", "arguments": "Paris"}',
        json.dumps(PARIS) + json.dumps({"name": "get_weather", "arguments": {"town": "Oslo"}}),
    ],
)
def test_what_does_not_fit_the_tool_is_not_valid(response: str) -> None:
    assert score("valid_call", response, TOOLS) == 0


@pytest.mark.parametrize(
    ("scorer", "reference", "said"),
    [
        ("call", "Paris", "no JSON"),
        ("call", "{}", "give a JSON list of calls"),
        ("call", '[{"name": "a"}]', "each call needs name and arguments"),
        ("valid_call", '[{"type": "function"}]', "each definition needs a name"),
        ("valid_call", '[{"name": "a", "parameters": {"type": "text"}}]', "no JSON Schema"),
    ],
)
def test_a_reference_that_cannot_judge_is_refused(scorer: str, reference: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_reference(scorer, reference)
