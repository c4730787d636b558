"""Adapters: each shape is recognised from its columns and becomes the payload that a person would write by hand."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from posttrain.data.config.curate import AdapterName, RecordType
from posttrain.data.sources.adapters import ADAPTERS, detect
from posttrain.data.sources.adapters_trees import answers, ranked_groups
from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, RowError
from posttrain.stage.errors import UsageError

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
GO = {"role": "assistant", "content": "Go away."}
BRIEF = {"role": "system", "content": "Be brief."}


def convert(row: dict[str, Any], record_type: RecordType) -> tuple[str, Any]:
    adapter = detect(row, record_type)
    adapter.check(row)
    return adapter.name, adapter.converter(record_type)(row)


DEMONSTRATIONS: list[tuple[str, dict[str, Any]]] = [
    ("prompt_completion", {"prompt": "Hi", "completion": "Hello!"}),
    ("prompt_completion", {"prompt": [HI], "completion": [HELLO]}),
    ("messages", {"messages": [HI, {**HELLO, "tool_calls": None}]}),
    ("alpaca", {"instruction": "Hi", "output": "Hello!"}),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello!", "text": "Below is …"}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}),
    ("question_answer", {"question": "Hi", "answer": "Hello!"}),
]


@pytest.mark.parametrize(("name", "row"), DEMONSTRATIONS)
def test_demonstrations(name: str, row: dict[str, Any]) -> None:
    assert convert(row, "demonstration") == (name, {"prompt": [HI], "completion": [HELLO]})


COMPARISONS: list[tuple[str, dict[str, Any]]] = [
    ("preference", {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}),
    ("preference", {"prompt": [HI], "chosen": [HELLO], "rejected": [GO]}),
    ("preference", {"prompt": "Hi", "chosen": HELLO, "rejected": GO}),
    ("preference", {"chosen": [HI, HELLO], "rejected": [HI, GO]}),
    ("preference", {"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, GO]}),
    ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}),
    ("ranked", {"prompt": "Hi", "responses": ["Hello!", "Go away."], "ranks": [1, 2]}),
    ("best_of", {"prompt": "Hi", "chosen": ["Hello!"], "rejected": ["Go away."]}),
    ("oasst_ranked", {"messages": [HI], "ranked": ["Hello!", "Go away."]}),
    ("oasst_ranked", {"messages": [HI], "ranked": ["Hello!", "Go away."], "ranks": [0, 1]}),
    (
        "verdicts",
        {
            "prompt": "Hi",
            "outputs": [
                {"response": "Hello!", "follow_list": [True, True]},
                {"response": "Go away.", "follow_list": [False, True]},
            ],
        },
    ),
]


@pytest.mark.parametrize(("name", "row"), COMPARISONS)
def test_comparisons(name: str, row: dict[str, Any]) -> None:
    wanted = {"prompt": [HI], "responses": [HELLO, GO], "ranks": [1, 2]}
    assert convert(row, "comparison") == (name, wanted)


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ([BRIEF], [HI]),
        ([BRIEF, HI], [HI]),
        ([BRIEF, HI], []),
        ([BRIEF, HI], [BRIEF, HI]),
        ([HI], [BRIEF, HI]),
        ([{**HI, "content": "Hi\n"}], [BRIEF, HI]),
    ],
)
def test_a_preference_keeps_its_prompt_once_before_whole_conversations(prompt: Any, before: Any) -> None:
    row = {"prompt": prompt, "chosen": [*before, HELLO], "rejected": [*before, GO]}
    _, made = convert(row, "comparison")
    assert made == {"prompt": [BRIEF, HI], "responses": [HELLO, GO], "ranks": [1, 2]}


def test_conversations_may_go_on_from_a_history_and_a_greeting_is_not_doubled() -> None:
    bye = {"role": "user", "content": "Bye"}
    _, made = convert({"prompt": [HI, HELLO], "chosen": [bye, HELLO], "rejected": [bye, GO]}, "comparison")
    assert made["prompt"] == [HI, HELLO, bye]
    _, made = convert({"prompt": [HELLO, HI], "chosen": [HELLO, HI, HELLO], "rejected": [GO]}, "comparison")
    assert made["prompt"] == [HELLO, HI]


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ("Bye", [HI]),
        ([BRIEF], [{**BRIEF, "content": "Be long."}, HI]),
        ([BRIEF], [{"role": "developer", "content": "Be brief."}, HI]),
        ([BRIEF, HI], [BRIEF, {**HI, "content": "Bye"}]),
        ([HI, GO], [HI]),
        ([BRIEF, HI, GO], [HI]),
    ],
)
def test_a_prompt_that_its_conversations_contradict_is_refused(prompt: Any, before: Any) -> None:
    row = {"prompt": prompt, "chosen": [*before, HELLO], "rejected": [*before, GO]}
    with pytest.raises(RowError, match=r"^chosen '.*': neither holds the prompt nor goes on from its last turn '"):
        convert(row, "comparison")


def test_earlier_turns_and_context_belong_to_the_prompt() -> None:
    _, made = convert({"messages": [BRIEF, HI, HELLO, HI, GO]}, "demonstration")
    assert made == {"prompt": [BRIEF, HI, HELLO, HI], "completion": [GO]}
    _, made = convert({"instruction": "Translate.", "input": "Hallo", "output": "Hello"}, "demonstration")
    assert made["prompt"] == [{"role": "user", "content": "Translate.\n\nHallo"}]
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Hi\n\nAssistant:"
    _, made = convert({"chosen": f"{transcript} Go away.", "rejected": f"{transcript} "}, "comparison")
    assert made == {"prompt": [HI, HELLO, HI], "responses": [GO, {"role": "assistant", "content": ""}], "ranks": [1, 2]}


def test_speakers_of_sharegpt_keep_their_roles() -> None:
    said = {"system": "Be brief.", "human": "Hi", "gpt": "Hello!", "tool": "4", "chatgpt": "Go away."}
    turns = [{"from": speaker, "value": text} for speaker, text in said.items()]
    _, made = convert({"conversations": turns}, "demonstration")
    assert made == {"prompt": [BRIEF, HI], "completion": [HELLO, {"role": "tool", "content": "4"}, GO]}


def test_plain_text_has_no_prompt() -> None:
    text = {"role": "assistant", "content": "Once upon a time."}
    assert convert({"text": "Once upon a time."}, "demonstration") == ("text", {"prompt": [], "completion": [text]})


def test_verdicts_tie_where_equally_many_instructions_are_followed_and_pass_null_responses_on() -> None:
    lists = [[True, False], [False, True], [True, True], [False, False]]
    outputs = [{"response": text, "follow_list": kept} for text, kept in zip(["a", None, "c", "d"], lists, strict=True)]
    _, made = convert({"prompt": "Hi", "outputs": outputs, "lang": "fr"}, "comparison")
    assert made["ranks"] == [2, 2, 1, 3]
    assert [turn["content"] for turn in made["responses"]] == ["a", "", "c", "d"]
    assert made["language"] == "fr"


def test_a_worked_answer_gives_its_number_as_the_reference() -> None:
    row = {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}
    _, made = convert(row, "evaluation")
    prompt = [{"role": "user", "content": "2 + 3?"}]
    assert made == {"prompt": prompt, "reference": "1,005", "scorer": "number", "ideal": row["answer"]}
    _, made = convert({"question": "2 + 3?", "answer": "five"}, "evaluation")
    assert made == {"prompt": prompt, "reference": "five"}


def test_evaluation_items_keep_their_scorer() -> None:
    row = {"prompt": [HI], "reference": "Hello!", "scorer": "exact", "ideal": None}
    assert convert(row, "evaluation") == ("evaluation", {"prompt": [HI], "reference": "Hello!", "scorer": "exact"})


@pytest.mark.parametrize("row", [row for _, row in DEMONSTRATIONS + COMPARISONS])
def test_prompts_come_from_any_shape(row: dict[str, Any]) -> None:
    _, made = convert(row, "prompt")
    reference = {"reference": "Hello!"} if "question" in row else {}
    assert made == {"prompt": [HI], **reference}


def test_transcripts_that_cannot_be_told_apart_are_dropped() -> None:
    chosen = "\n\nHuman: Hi\n\nAssistant: Hello!"
    twice = "\n\nHuman: Hi\n\nHuman: Hi\n\nAssistant: Hello!"
    assert convert({"chosen": twice, "rejected": chosen}, "comparison")[1] == Drop("turns_do_not_alternate")
    silent = "\n\nHuman:\n\nAssistant: Hello!"
    assert convert({"chosen": silent, "rejected": silent}, "comparison")[1] == Drop("empty_turn")
    other = "\n\nHuman: Bye\n\nAssistant: Go away."
    assert convert({"chosen": chosen, "rejected": other}, "comparison")[1] == Drop("prompts_differ")


@pytest.mark.parametrize(
    ("row", "record_type", "message"),
    [
        ({"prompt": 3, "completion": "a"}, "demonstration", "prompt 3: must be a text, not int; convert it"),
        ({"prompt": "  ", "completion": "a"}, "demonstration", "prompt '  ': empty content; write a text or remove"),
        ({"prompt": "a\0", "completion": "a"}, "demonstration", "holds a NUL character"),
        ({"prompt": "\ud800", "completion": "a"}, "demonstration", "half a surrogate pair"),
        ({"messages": [HI]}, "demonstration", "messages: ends with the 'user' turn 'Hi'; end it with an answer"),
        ({"messages": [HELLO]}, "demonstration", "no user turn before 'Hello!'"),
        (
            {"messages": [HI, {"role": "assistant"}]},
            "demonstration",
            r"messages\[1\] .*must be an object with role and",
        ),
        (
            {"messages": [HI, {**HELLO, "name": "Bo"}]},
            "demonstration",
            r"messages\[1\].name 'Bo': only 'tool' turns have",
        ),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "demonstration", "from 'narrator': must be one of"),
        ({"prompt": "a", "responses": ["x"], "ranks": [1]}, "comparison", r"responses \['x'\]: must be a list of at"),
        ({"prompt": "a", "responses": ["x", "y"], "ranks": [1, "2"]}, "comparison", "ranks .* whole numbers"),
        ({"messages": [HI], "ranked": ["x", "y"], "ranks": [1, 0]}, "comparison", "must not fall"),
        ({"chosen": "Hello", "rejected": "No"}, "comparison", "must begin with"),
        ({"prompt": [HI], "chosen": [HI], "rejected": [GO]}, "comparison", "chosen 'Hi': must be an assistant's turn"),
        ({"question": "a", "answer": "so ####"}, "evaluation", "answer after #### '': empty content"),
    ],
)
def test_wrong_shapes_are_refused_with_value_requirement_and_fix(
    row: dict[str, Any], record_type: RecordType, message: str
) -> None:
    with pytest.raises(RowError, match=message):
        convert(row, record_type)


def test_a_later_row_without_a_column_is_refused() -> None:
    with pytest.raises(RowError, match="no column 'completion'; rename 'completions' to 'completion'"):
        ADAPTERS["prompt_completion"].check({"prompt": "a", "completions": "b"})


def test_a_later_row_whose_column_is_named_otherwise_says_what_to_rename() -> None:
    with pytest.raises(RowError, match=r"^no column 'completion'; rename 'response' to 'completion'; adapter"):
        ADAPTERS["prompt_completion"].check({"prompt": "a", "response": "b"})
    with pytest.raises(
        RowError, match=r"^no column 'completion'; adapter 'prompt_completion' needs completion, prompt"
    ):
        ADAPTERS["prompt_completion"].check({"prompt": "a", "score": 1})


@pytest.mark.parametrize(
    ("columns", "record_type", "fix"),
    [
        ("prompt response", "demonstration", "rename 'response' to 'completion'"),
        ("question response id", "demonstration", "rename 'response' to 'answer'"),
        ("Prompt Completion", "demonstration", "rename 'Completion' to 'completion' and 'Prompt' to 'prompt'"),
        ("query reply", "demonstration", "rename 'reply' to 'answer' and 'query' to 'question'"),
        ("instruction response", "demonstration", "rename 'response' to 'output'"),
        ("conversation", "demonstration", "rename 'conversation' to 'messages'"),
        ("prompt chosen rejectd", "comparison", "rename 'rejectd' to 'rejected'"),
        ("prompt answers ranking", "comparison", "rename 'ranking' to 'ranks' and 'answers' to 'responses'"),
        ("question reference", "evaluation", "rename 'question' to 'prompt'"),
        ("question", "prompt", "rename 'question' to 'prompt'"),
    ],
)
def test_columns_that_are_named_otherwise_are_told_their_names(columns: str, record_type: RecordType, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        detect(dict.fromkeys(columns.split(), "x"), record_type)
    names = ", ".join(sorted(columns.split()))
    assert str(caught.value) == f"columns {names} make no {record_type} records; {fix}"


def test_unknown_columns_and_wrong_record_types_are_refused() -> None:
    with pytest.raises(UsageError, match="columns body, title fit no adapter; rename them to those of one of"):
        detect({"title": "a", "body": "b"}, "demonstration")
    with pytest.raises(
        UsageError, match="'preference' makes comparison or unpaired records, not demonstration records"
    ):
        detect({"prompt": "a", "chosen": "b", "rejected": "c"}, "demonstration")
    with pytest.raises(UsageError, match="'verdicts' makes comparison or unpaired records, not demonstration records"):
        detect({"prompt": "a", "outputs": []}, "demonstration")


def test_the_configuration_lists_every_adapter() -> None:
    assert get_args(AdapterName) == ("auto", *ADAPTERS)


def test_columns_that_nobody_reads_are_named() -> None:
    row = {"prompt": "a", "completion": "b", "language": "en", "annotator": "x", "score": 1}
    assert ADAPTERS["prompt_completion"].ignored(row, "demonstration") == {"annotator": "x", "score": 1}


def message(name: str, parent: str | None, **columns: Any) -> dict[str, Any]:
    role = "assistant" if name.startswith("a") else "prompter"
    return {"message_id": name, "parent_id": parent, "role": role, "text": f"text {name}", "lang": "en", **columns}


TREE = [
    message("p1", None),
    message("a1", "p1", rank=1),
    message("a2", "p1", rank=0),
    message("a3", "p1", rank=None),
    message("p2", "a2"),
    message("a4", "p2", rank=0),
    message("a5", "p2", rank=1, deleted=True),
    message("a6", "lost"),
    message("a7", "p1", review_result=False),
]
TREE_ROWS: list[Row | BadRow] = [Row(f":{number}", values) for number, values in enumerate(TREE, start=1)]


def test_every_answer_of_a_tree_is_a_demonstration() -> None:
    units = [unit for unit in answers(TREE_ROWS) if isinstance(unit, Row)]
    made = [ADAPTERS["oasst"].converter("demonstration")(unit.values) for unit in units]
    assert [unit.position for unit in units] == [":2", ":3", ":4", ":6", ":7", ":8", ":9"]
    assert [drop for drop in made if isinstance(drop, Drop)] == [
        Drop("deleted"),
        Drop("no_root"),
        Drop("failed_review"),
    ]
    assert made[3] == {
        "prompt": [
            {"role": "user", "content": "text p1"},
            {"role": "assistant", "content": "text a2"},
            {"role": "user", "content": "text p2"},
        ],
        "completion": [{"role": "assistant", "content": "text a4"}],
        "language": "en",
    }


def test_ranked_siblings_of_a_tree_are_a_comparison() -> None:
    (unit,) = [unit for unit in ranked_groups(TREE_ROWS) if isinstance(unit, Row)]
    assert unit.position == ":1"
    assert ADAPTERS["oasst"].converter("comparison")(unit.values) == {
        "prompt": [{"role": "user", "content": "text p1"}],
        "responses": [{"role": "assistant", "content": text} for text in ("text a1", "text a2")],
        "ranks": [2, 1],
        "language": "en",
    }


def test_a_reply_of_a_tree_may_say_nothing_as_other_responses_may() -> None:
    silent: list[Row | BadRow] = [*TREE_ROWS[:2], Row(":3", TREE[2] | {"text": ""})]
    (unit,) = [unit for unit in ranked_groups(silent) if isinstance(unit, Row)]
    made = ADAPTERS["oasst"].converter("comparison")(unit.values)
    assert not isinstance(made, Drop)
    assert [turn["content"] for turn in made["responses"]] == ["text a1", ""]


def test_faults_of_tree_messages_are_bad_rows() -> None:
    circle = [message("a8", "a9"), message("a9", "a8")]
    rows: list[Row | BadRow] = [
        *TREE_ROWS,
        Row(":10", message("x", None, role="bot")),
        Row(":11", message("a1", "p1")),
        *(Row(":12", values) for values in circle),
    ]
    units = list(answers(rows))
    assert [(unit.position, unit.reason.split(":")[0]) for unit in units if isinstance(unit, BadRow)] == [
        (":10", "role 'bot'"),
        (":11", "message_id 'a1'"),
    ]
    made = [ADAPTERS["oasst"].converter("demonstration")(unit.values) for unit in units[-2:] if isinstance(unit, Row)]
    assert made == [Drop("no_root"), Drop("no_root")]


def test_several_right_answers_tie_and_an_empty_side_is_refused() -> None:
    _, made = convert({"prompt": "Hi", "chosen": ["Hello!", "Hi!"], "rejected": ["Go away."]}, "comparison")
    assert made["ranks"] == [1, 1, 2]
    row = {"prompt": "Hi", "chosen": ["Hello!"], "rejected": ["Go away."]}
    adapter = detect(row, "comparison")
    assert adapter.name == "best_of"
    with pytest.raises(RowError, match=r"rejected \[\]: must be a list of at least one text"):
        adapter.converter("comparison")({**row, "rejected": []})
