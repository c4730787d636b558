"""The columns of a source: read under the names that its knobs give, or left out where the user can see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, qa, source

from posttrain.stage.errors import UsageError

ROW = {"problem": "A?", "solution": "b", "notes": "n"}


def read(folder: Path, lines: list[dict[str, Any]], **knobs: Any) -> Any:
    return curate(folder, "demonstration", [source(folder, "s", lines, **knobs)], eval_fraction=0)


def test_columns_are_read_under_the_names_of_the_knob(tmp_path: Path) -> None:
    mapping = {"prompt": "problem", "completion": "solution"}
    (record,) = read(tmp_path, [ROW], columns=mapping).train
    assert (record.prompt[0].content, record.completion[0].content) == ("A?", "b")


def test_columns_may_change_places_or_take_one_that_is_ignored(tmp_path: Path) -> None:
    swap = {"question": "answer", "answer": "question"}
    (record,) = read(tmp_path, [qa("A?", "b")], columns=swap).train
    assert (record.prompt[0].content, record.completion[0].content) == ("b", "A?")
    (tmp_path / "out").rename(tmp_path / "first")
    knobs = {"columns": {"answer": "reply"}, "ignore": ["answer"]}
    (record,) = read(tmp_path, [qa("A?", "b", reply="c")], **knobs).train
    assert record.completion[0].content == "c"


@pytest.mark.parametrize(
    ("knobs", "fault"),
    [
        ({"columns": {"prompt": "problm"}}, ":1: columns.prompt: no column 'problm'; did you mean 'problem'?"),
        (
            {"columns": {"promt": "problem"}},
            ": columns.promt: no adapter reads a column of this name; did you mean 'prom",
        ),
        (
            {"columns": {"notes": "problem"}},
            ": columns.notes: no adapter reads a column of this name",
        ),
        (
            {"columns": {"prompt": "problem"}, "ignore": ["note"]},
            ": ignore: no row has a column 'note'; did you mean 'no",
        ),
    ],
)
def test_a_knob_that_names_no_column_is_an_error(tmp_path: Path, knobs: dict[str, Any], fault: str) -> None:
    knobs = {"columns": {}, **knobs}
    knobs["columns"].setdefault("completion", "solution")
    with pytest.raises(UsageError) as caught:
        read(tmp_path, [ROW], **knobs)
    assert str(caught.value).startswith(f"{tmp_path}/s.jsonl{fault}")


def test_a_column_that_would_stand_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"columns.answer: there is a column 'answer' besides 'reply'; add it to ignor"
    ):
        read(tmp_path, [qa("A?", "b", reply="c")], columns={"answer": "reply"})


LONG = "a text of some length, " * 8


def test_columns_that_nobody_uses_are_said_where_the_user_looks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loud = {
        "rationale": LONG,
        "dialog": [{"role": "user", "content": "x"}],
        "turns_as_text": '[{"from": "human", "value": "x"}]',
        "response": "short, but named as an answer",
        "drafts": ["a", LONG],
        "persona": "a pirate",
    }
    quiet = {
        "score": 1.5,
        "annotator": "Ann",
        "url": "http://" + "x" * 200,
        "tags": ["a", "b"],
        "notes": "",
        "ok": True,
    }
    made = read(tmp_path, [qa("A?", **loud, **quiet), qa("B?", **loud), qa("C?", notes="")])
    counts = made.accounting["by_source"]["s"]
    assert counts["ignored_content"] == dict.fromkeys(loud, 2)
    assert counts["ignored_columns"] == dict.fromkeys(loud, 2) | dict.fromkeys(quiet, 1) | {"notes": 2}
    assert made.result.headline == "3 rows kept of 3, nothing held out; not used: dialog, drafts, persona and 3 more"
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert warning.startswith(f"{tmp_path}/s.jsonl: columns that look like content, which adapter 'question_answer' ")
    assert all(f"{name} (2 rows)" in warning for name in loud)


def test_quiet_columns_leave_the_headline_alone(tmp_path: Path) -> None:
    made = read(tmp_path, [qa("A?", score=1, url="x")])
    assert made.result.headline == "1 rows kept of 1, nothing held out"
    assert "ignored_content" not in made.accounting["by_source"]["s"]
