"""Columns that change what a row means: used whatever the shape of the row, or refused by name, and never dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, qa, source

from posttrain.data.config.curate import RecordType
from posttrain.data.messages import message_dicts
from posttrain.data.records import Comparison, Demonstration
from posttrain.stage.errors import UsageError

BRIEF = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "A?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PAIR = {"prompt": "A?", "chosen": "b", "rejected": "c"}
SHAPES: list[tuple[RecordType, dict[str, Any]]] = [
    ("demonstration", qa("A?")),
    ("demonstration", {"prompt": "A?", "completion": "b"}),
    ("demonstration", {"instruction": "A?", "output": "b"}),
    ("demonstration", {"messages": [USER, {"role": "assistant", "content": "b"}]}),
    ("demonstration", {"conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "b"}]}),
    ("comparison", PAIR),
    ("comparison", {"prompt": "A?", "responses": ["b", "c"], "ranks": [1, 2]}),
    ("prompt", {"prompt": "A?"}),
    ("evaluation", {"prompt": "A?", "reference": "b"}),
]


def record_of(folder: Path, record_type: RecordType, row: dict[str, Any], **knobs: Any) -> Any:
    made = curate(folder, record_type, [source(folder, "s", [row], **knobs)], eval_fraction=0)
    (record,) = [*made.train, *made.eval]
    return record


@pytest.mark.parametrize(("record_type", "row"), SHAPES)
def test_every_shape_takes_tools_system_history_context_and_arguments(
    tmp_path: Path, record_type: RecordType, row: dict[str, Any]
) -> None:
    further = {
        "tools": [TOOL],
        "system": "Be brief.",
        "history": [["Hi", "<think>so</think>Hello."]],
        "context": "It rains.",
        "template_arguments": {"enable_thinking": False},
    }
    record = record_of(tmp_path, record_type, row | further)
    assert record.tools == [TOOL]
    assert record.template_arguments == {"enable_thinking": False}
    assert message_dicts(record.prompt) == [
        BRIEF,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "so"},
        {"role": "user", "content": "A?\n\nIt rains."},
    ]


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [TOOL["function"]],
        [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
        [{"name": "weather", "input_schema": {"type": "object"}}],
    ],
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_definitions_of_tools_are_read_in_every_form(tmp_path: Path, column: str, tools: Any) -> None:
    assert record_of(tmp_path, "demonstration", qa("A?", **{column: tools})).tools == [TOOL]


@pytest.mark.parametrize("column", ["reasoning", "thinking", "reasoning_content"])
def test_reasoning_beside_a_completion_is_the_completions(tmp_path: Path, column: str) -> None:
    record = record_of(tmp_path, "demonstration", qa("A?", "<think>so</think>b", **{column: "so"}))
    assert message_dicts(record.completion) == [{"role": "assistant", "content": "b", "reasoning_content": "so"}]
    (tmp_path / "prompt").mkdir()
    assert record_of(tmp_path / "prompt", "prompt", qa("A?", **{column: "so"})).prompt[0].content == "A?"


EMPTY: dict[str, Any] = {
    "tools": [],
    "functions": "[]",
    "system": " ",
    "history": [],
    "context": None,
    "chat_template_kwargs": {},
    "reasoning": "",
    "images": [],
    "videos": "[]",
    "audio": None,
    "weight": 1.0,
    "label": None,
}


@pytest.mark.parametrize(("record_type", "row"), SHAPES)
def test_columns_that_say_nothing_change_nothing(tmp_path: Path, record_type: RecordType, row: dict[str, Any]) -> None:
    record = record_of(tmp_path, record_type, row | EMPTY)
    (tmp_path / "bare").mkdir()
    assert record == record_of(tmp_path / "bare", record_type, row)


CHAT = {"messages": [USER, {"role": "assistant", "content": "b"}, USER, {"role": "assistant", "content": "b"}]}
LEAVE = ", or leave the column out by the source's ignore=[{}] (on_bad_row=quarantine sets bad rows aside)"
FAULTS: list[tuple[RecordType, dict[str, Any], str]] = [
    ("demonstration", qa("A?", images=["x.png"]), "images ['x.png']: only text can be trained on; remove the row"),
    ("comparison", PAIR | {"video": "x.mp4"}, "video 'x.mp4': only text can be trained on; remove the row"),
    ("prompt", {"prompt": "A?", "audio": {"path": "x.wav"}}, "audio {'path': 'x.wav'}: only text can be trained on"),
    ("demonstration", qa("A?", weight=0.5), "weight 0.5: rows have no weights; repeat the row"),
    ("comparison", PAIR | {"weight": 0}, "weight 0: rows have no weights; repeat the row"),
    (
        "demonstration",
        qa("A?", label=True),
        "label True: says whether the completion is good; use record_type=unpaired",
    ),
    (
        "demonstration",
        qa("A?", label="false"),
        "label 'false': says whether the completion is good; use record_type=un",
    ),
    ("demonstration", qa("A?", label=0), "label 0: says whether the completion is good; use record_type=unpaired"),
    ("demonstration", CHAT | {"context": "It rains."}, "context 'It rains.': belongs to one question, not to a conv"),
    ("demonstration", qa("A?", history="Hi"), "history 'Hi': must be a list of pairs of question and answer"),
    ("comparison", PAIR | {"reasoning": "so"}, "reasoning 'so': does not say whose; give responses as messages with"),
    (
        "demonstration",
        {"text": "a", "system": "b"},
        "system 'b': a plain text has no system; give prompt and completion",
    ),
    ("demonstration", {"text": "a", "tools": [TOOL]}, "tools [{'type': 'function', 'function': {'name': 'weather'"),
    (
        "demonstration",
        {"messages": [{**BRIEF, "content": "Be long."}, *CHAT["messages"]], "system": "Be brief."},
        "system 'Be brief.': the conversation begins with another system turn, 'Be long.'; keep one",
    ),
]


@pytest.mark.parametrize(("record_type", "row", "fault"), FAULTS)
def test_what_cannot_be_used_is_refused_with_both_fixes(
    tmp_path: Path, record_type: RecordType, row: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UsageError) as caught:
        record_of(tmp_path, record_type, row)
    shown = str(caught.value)
    column = fault.split(" ")[0]
    assert shown.startswith(f"{tmp_path}/s.jsonl:1: {fault}")
    assert shown.endswith(LEAVE.format(column))
    (tmp_path / "out").rename(tmp_path / "failed")
    assert record_of(tmp_path, record_type, row, ignore=[column]).tools is None


@pytest.mark.parametrize(
    ("further", "fault"),
    [
        ({"tools": '[{"name": '}, "tools '[{\"name\": ': not JSON ("),
        ({"tools": {"name": "f"}}, "tools {'name': 'f'}: must be a list of tool definitions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type 'web_search': only functions can be defined; remove it"),
        ({"tools": [{"type": "function"}]}, "tools[0] {'type': 'function'}: a definition must name its function"),
        ({"tools": [TOOL], "functions": [{"name": "f"}]}, "functions [{'name': 'f'}]: the column tools says otherwise"),
        ({"template_arguments": "yes"}, "template_arguments 'yes': not JSON ("),
        ({"template_arguments": [1]}, "template_arguments [1]: must be an object, or its JSON text"),
        ({"template_arguments": {"tools": []}}, "template_arguments.tools []: is not the row's to say; remove it"),
        (
            {"template_arguments": {"a": 1}, "chat_template_kwargs": {"a": 2}},
            "chat_template_kwargs.a 2: template_arguments says otherwise; keep one",
        ),
        ({"system": "a", "system_prompt": "b"}, "system stands twice and differs, 'a' and 'b'; keep one"),
        ({"reasoning": "so", "thinking": "no"}, "reasoning stands twice and differs, "),
        ({"history": [["Hi", ""]]}, "history[0][1] '': empty content; write a text or remove the row"),
    ],
)
def test_columns_that_are_broken_or_at_odds_are_errors_of_their_row(
    tmp_path: Path, further: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UsageError) as caught:
        record_of(tmp_path, "demonstration", qa("A?") | further)
    assert str(caught.value).startswith(f"{tmp_path}/s.jsonl:1: {fault}")


def test_labels_that_are_no_verdicts_are_left_out(tmp_path: Path) -> None:
    lines = [qa("A?", label="spam"), qa("B?", label=3), {"question": "C?", "answer": "d", "label": None}]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", lines)], eval_fraction=0)
    assert made.accounting["by_source"]["s"]["ignored_columns"] == {"label": 3}


def test_turns_that_a_row_has_already_are_not_doubled(tmp_path: Path) -> None:
    chat = [BRIEF, USER, {"role": "assistant", "content": "b"}, USER, {"role": "assistant", "content": "b"}]
    record = record_of(tmp_path, "demonstration", {"messages": chat, "system": "Be brief.", "history": chat[:3]})
    assert message_dicts(record.prompt) == chat[:-1]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("system", ["a", "b"]),
        ("history", [[["a", "b"]], [["a", "c"]]]),
        ("context", ["a", "b"]),
        ("tools", [[{"name": "a"}], [{"name": "b"}]]),
        ("template_arguments", [{"a": 1}, {"a": 2}]),
        ("thinking", ["a", "b"]),
    ],
)
def test_rows_that_differ_in_a_used_column_alone_are_no_duplicates(
    tmp_path: Path, column: str, values: list[Any]
) -> None:
    lines = [qa("A?", **{column: value}) for value in [*values, values[0]]]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", lines)], eval_fraction=0)
    assert len(made.train) == 2
    assert made.accounting["dropped"] == {"duplicate": 1}


def test_rows_of_chat_data_with_tools_come_through_whole(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3 C"},
    ]
    answer = {"role": "assistant", "content": "3 C.", "reasoning": "so"}
    record = record_of(tmp_path, "demonstration", {"prompt": messages, "completion": [answer], "tools": [TOOL]})
    assert isinstance(record, Demonstration)
    called = {**call, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert message_dicts(record.prompt) == [USER, {**messages[1], "content": "", "tool_calls": [called]}, messages[2]]
    assert message_dicts(record.completion) == [{"role": "assistant", "content": "3 C.", "reasoning_content": "so"}]


def calling(city: str, **keys: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}, **keys}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def test_responses_are_compared_as_whole_messages(tmp_path: Path) -> None:
    lines = [
        {"prompt": "differ?", "chosen": calling("Oslo"), "rejected": calling("Rome"), "tools": [TOOL]},
        {"prompt": "same?", "chosen": calling("Oslo", id="1"), "rejected": calling("Oslo", id="2")},
        {"prompt": "thoughts?", "chosen": "<think>a</think>x", "rejected": "<think>b</think>x"},
        {"prompt": "silent?", "chosen": calling("Oslo"), "rejected": [{"role": "assistant", "content": ""}]},
        {"prompt": "silent too?", "chosen": calling("Oslo"), "rejected": ""},
    ]
    made = curate(tmp_path, "comparison", [source(tmp_path, "s", lines)], eval_fraction=0)
    first, second = made.train
    assert isinstance(first, Comparison)
    assert [r.tool_calls[0].arguments for r in first.responses if r.tool_calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert [response.reasoning_content for response in second.responses] == ["a", "b"]
    assert made.accounting["dropped"] == {"empty_response": 2, "identical_responses": 1}


def test_marked_calls_become_calls_and_the_rows_are_counted(tmp_path: Path) -> None:
    said = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    lines = [qa("A?", said, system=f"<tools>{json.dumps([TOOL])}</tools>"), qa("B?")]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", lines)], eval_fraction=0)
    record = made.train[0]
    assert (record.tools, [turn.role for turn in record.prompt]) == ([TOOL], ["user"])
    assert record.completion[0].tool_calls[0].arguments == {"city": "Oslo"}
    assert made.accounting["by_source"]["s"]["noted"] == {"calls_in_text": 1}
