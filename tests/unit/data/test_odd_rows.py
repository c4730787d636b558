"""Rows as files of the world have them: blank cells, odd types, halves of characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_data import curate, qa, source

from posttrain.data.config.curate import RecordType
from posttrain.stage.errors import UsageError


def test_blank_cells_are_absent_and_leave_the_word_to_the_source(tmp_path: Path) -> None:
    rows = ["question,answer,id,license,language,task", "A?,Yes.,,, ,", "B?,No.,7,MIT,fi,chat"]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    mine = {"name": "mine", "path": str(tmp_path / "mine.csv"), "license": "CC0-1.0", "language": "en", "task": "qa"}
    first, second = curate(tmp_path, "demonstration", [mine], eval_fraction=0).train
    assert (first.license, first.language, first.task) == ("CC0-1.0", "en", "qa")
    assert first.id.startswith("mine/") and first.id != "mine/"
    assert (second.id, second.license, second.language, second.task) == ("mine/7", "MIT", "fi", "chat")


def test_blank_cells_of_items_and_comparisons_are_absent(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("prompt,reference,scorer,ideal\nA?,5, ,\n")
    mine = {"name": "mine", "path": str(tmp_path / "items.csv"), "scorer": "number"}
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,annotator\nA?,b,c,\n")
    pairs = {"name": "pairs", "path": str(tmp_path / "pairs.csv")}
    (item,) = curate(tmp_path, "evaluation", [mine]).eval
    assert (item.scorer, item.ideal) == ("number", None)
    (tmp_path / "out").rename(tmp_path / "done")
    assert curate(tmp_path, "comparison", [pairs]).train[0].annotator == "unknown"
    (tmp_path / "out").rename(tmp_path / "pairs")
    (tmp_path / "prompts.csv").write_text("prompt,reference\nA?,\n")
    asked = {"name": "p", "path": str(tmp_path / "prompts.csv"), "adapter": "prompt"}
    (prompt,) = curate(tmp_path, "prompt", [asked]).train
    assert prompt.reference is None


def test_cells_hold_lists_as_json_text(tmp_path: Path) -> None:
    cells = [
        ("messages", '[{"role": "user", "content": "A?"}, {"role": "assistant", "content": "b"}]', "demonstration"),
        ("conversations", '[{"from": "human", "value": "A?"}, {"from": "gpt", "value": "b"}]', "demonstration"),
        (
            "prompt,completion",
            '[{"role": "user", "content": "A?"}]|[{"role": "assistant", "content": "b"}]',
            "demonstration",
        ),
        ("prompt,responses,ranks", 'A?|["b", "c"]|[1, 2]', "comparison"),
        ("prompt,responses,ranks,ended", 'A?|["b", "c"]|[1, 2]|[true, false]', "comparison"),
        ("prompt,chosen,rejected", 'A?|[{"role": "assistant", "content": "b"}]|c', "comparison"),
        (
            "prompt,outputs",
            'A?|[{"response": "b", "follow_list": [true]}, {"response": "c", "follow_list": [false]}]',
            "comparison",
        ),
    ]
    for number, (names, row, record_type) in enumerate(cells):
        quoted = ",".join('"{}"'.format(cell.replace('"', '""')) for cell in row.split("|"))
        (tmp_path / "rows.csv").write_text(f"{names}\n{quoted}\n")
        made = curate(tmp_path, record_type, [{"name": "s", "path": str(tmp_path / "rows.csv")}], eval_fraction=0)
        (record,) = made.train
        answers = record.completion if record_type == "demonstration" else record.responses
        assert (record.prompt[0].content, answers[0].content) == ("A?", "b")
        (tmp_path / "out").rename(tmp_path / f"out{number}")


def test_what_pandas_writes_of_absent_values_is_read(tmp_path: Path) -> None:
    nan = float("nan")
    lines = [qa("A?", id=1.0, score=nan, task=nan, system=nan), qa("B?", id=nan, score=nan, images=nan, label=nan)]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", lines, task="chat")], eval_fraction=0)
    first, second = made.train
    assert (first.id, first.task) == ("s/1", "chat")
    assert len(second.id) == len("s/") + 24
    assert "ignored_content" not in made.accounting["by_source"]["s"]
    (tmp_path / "out").rename(tmp_path / "done")
    with pytest.raises(UsageError, match=r"s.jsonl:1: answer nan: must be a text, not float; convert it"):
        curate(tmp_path, "demonstration", [source(tmp_path, "s", [qa("A?") | {"answer": nan}])])


def test_nulls_that_parquet_adds_to_objects_are_not_arguments(tmp_path: Path) -> None:
    def called(**arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        asked = {"role": "user", "content": f"{arguments}?"}
        tool = {"name": "f", "parameters": {"properties": {name: {"type": "string"} for name in arguments}}}
        chat = [asked, {"role": "assistant", "tool_calls": [call]}]
        return {"messages": chat, "tools": [tool], "chat_template_kwargs": arguments}

    rows = [called(a="1"), called(b="2")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    made = curate(tmp_path, "demonstration", [{"name": "s", "path": str(tmp_path / "rows.parquet")}], eval_fraction=0)
    assert [record.completion[0].tool_calls[0].arguments for record in made.train] == [{"a": "1"}, {"b": "2"}]
    assert [record.template_arguments for record in made.train] == [{"a": "1"}, {"b": "2"}]
    assert [list(record.tools[0]["function"]["parameters"]["properties"]) for record in made.train] == [["a"], ["b"]]


HALF = "\ud800"
TURNS = [{"from": "human", "value": "Hi"}, {"from": ["gpt"], "value": "Yes."}]
RANKED = {"prompt": "p?", "responses": ["a", "b"], "ranks": [1, 2]}
MESSAGE = {"message_id": "m", "parent_id": None, "role": "prompter", "text": "Hi", "lang": "en"}
ODD_ROWS: list[tuple[RecordType, str, dict[str, Any], str]] = [
    ("demonstration", "sharegpt", {"conversations": TURNS}, "conversations[1].from ['gpt']: must be one of system,"),
    ("demonstration", "question_answer", qa("x", task=HALF), "task '\\ud800': holds half a surrogate pair; write"),
    ("demonstration", "question_answer", qa("x", license=HALF), "license '\\ud800': holds half a surrogate pair; "),
    ("demonstration", "question_answer", qa("x", language=f"a{HALF}"), "language 'a\\ud800': holds half a surrogate"),
    ("demonstration", "question_answer", qa("x", task="a\0"), "task 'a\\x00': holds a NUL character; remove it"),
    ("demonstration", "question_answer", qa("x", id=HALF), "id '\\ud800': holds half a surrogate pair; write whole"),
    ("comparison", "ranked", RANKED | {"annotator": HALF}, "annotator '\\ud800': holds half a surrogate pair; write"),
    ("comparison", "ranked", RANKED | {"ranks": [1, 2**31]}, "rank 2147483648; ranks end at 2147483647"),
    ("demonstration", "oasst", MESSAGE | {"message_id": ["m"]}, "message_id ['m']: must be a text, not list; convert"),
    ("comparison", "oasst", MESSAGE | {"parent_id": {}}, "parent_id {}: must be a text, not dict; convert it"),
    ("comparison", "oasst", MESSAGE | {"role": ["x"]}, "role ['x']: must be one of prompter, assistant; rename it"),
]


@pytest.mark.parametrize(("record_type", "adapter", "row", "reason"), ODD_ROWS)
def test_values_of_odd_types_and_halves_of_characters_are_errors_of_their_row(
    tmp_path: Path, record_type: RecordType, adapter: str, row: dict[str, Any], reason: str
) -> None:
    mine = source(tmp_path, "s", [row], adapter=adapter)
    with pytest.raises(UsageError) as caught:
        curate(tmp_path, record_type, [mine])
    found = str(caught.value)
    assert found.startswith(f"{mine['path']}:1: {reason}")
    (tmp_path / "out").rename(tmp_path / "first")
    with pytest.raises(UsageError, match=r"no row kept of 1 \(dropped: {'quarantined': 1}\)"):
        curate(tmp_path, record_type, [mine], on_bad_row="quarantine")


def test_comparisons_whose_scores_say_the_contrary_stay_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores: list[tuple[Any, Any]] = [(8, 3.5), (2.5, 3), (3, 3), (None, 9), ("1.5", "2"), ("low", "high"), (1, [2])]
    pairs = [
        {"prompt": f"{n}?", "chosen": "a", "rejected": "b", "score_chosen": chosen, "score_rejected": rejected}
        for n, (chosen, rejected) in enumerate(scores)
    ]
    plain = [{"prompt": "plain?", "chosen": "a", "rejected": "b"}]
    sources = [source(tmp_path, "scored", pairs), source(tmp_path, "plain", plain)]
    made = curate(tmp_path, "comparison", sources, eval_fraction=0)
    assert made.accounting["by_source"]["scored"]["noted"] == made.accounting["noted"] == {"rejected_scored_higher": 2}
    assert made.accounting["by_source"]["scored"]["kept"] == len(pairs)
    assert "noted" not in made.accounting["by_source"]["plain"]
    assert made.result.headline == "8 rows kept of 8 (rejected scored higher 2), nothing held out"
    assert made.result.facts["sources"]["scored"] == {"adapter": "preference"}
    assert (
        caplog.messages[0]
        == f"{sources[0]['path']}:2: score_chosen is below score_rejected; such rows stay and are counted"
    )
