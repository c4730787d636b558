"""Shapes of which a row is a thread of answers, a file of functions, or what a user's own function makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, source

from posttrain.stage.errors import UsageError

CODE = '''
import os


def greatest(numbers: list[int], *, floor: int = 0) -> int:
    """Return the greatest of the numbers,

    but no less than the floor.
    """
    # as the reader expects
    return max([floor, *numbers])


@decorated
async def waited(seconds):
    "Wait for so many seconds, and say so."; print(seconds)


def _private(number):
    """Return a number that nobody outside may see."""
    return number


def test_things():
    """Check that all of the things are right."""
    assert os


def shortly(number):
    """Too short."""
    return number


def later(number):
    """Return what will be written at another time."""
    raise NotImplementedError("not yet")


def undocumented(number):
    return number


class Kept:
    def method(self):
        """Return what methods return, which is asked for in no context."""
        return self
'''


def answer(text: str, score: int, **more: Any) -> dict[str, Any]:
    return {"text": text, "score": score, **more}


THREADS = [
    {"question": "a?", "answers": [answer("low", 1), answer("high", 9), answer("taken", 2, accepted=True)]},
    {"question": "b?", "answers": [answer("low", -1), answer("zero", 0)]},
    {"question": "c?", "answers": [answer("even", 3), answer("also", 3)]},
    {"question": "d?", "answers": [answer("alone", 3)]},
    {"question": "e?", "answers": []},
]


def test_the_accepted_answer_of_a_thread_or_that_of_most_votes_is_imitated(tmp_path: Path) -> None:
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", THREADS)], eval_fraction=0)
    found = {row.prompt[0].content: row.completion[0].content for row in made.train}
    assert found == {"a?": "taken", "c?": "even", "d?": "alone"}
    assert made.accounting["dropped"] == {"no_answer": 1, "no_good_answer": 1}


def test_answers_of_a_thread_are_compared_by_their_scores(tmp_path: Path) -> None:
    made = curate(tmp_path, "comparison", [source(tmp_path, "s", THREADS)], eval_fraction=0)
    found = {row.prompt[0].content: (*(turn.content for turn in row.responses), row.ranks) for row in made.train}
    assert found == {"a?": ("low", "high", "taken", [3, 1, 2]), "b?": ("low", "zero", [2, 1])}
    assert made.accounting["dropped"] == {"all_tied": 1, "fewer_than_two_answers": 2}


def test_an_answer_without_a_score_is_a_bad_row_with_its_place(tmp_path: Path) -> None:
    lines = [THREADS[0], {"question": "b?", "answers": [{"text": "hm", "points": 3}]}]
    with pytest.raises(UsageError, match=r"s\.jsonl:2: answers\[0\] .* no number as one of score, pm_score, votes"):
        curate(tmp_path, "demonstration", [source(tmp_path, "s", lines)])


def test_documented_functions_become_requests_and_their_code(tmp_path: Path) -> None:
    lines = [{"code": CODE, "id": "f", "license": "MIT"}, {"code": "def broken(:"}, {"code": "x = 1"}]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", lines)], eval_fraction=0)
    found = {row.id: (row.prompt[0].content, row.completion[0].content) for row in made.train}
    asked = "Write the Python function `greatest(numbers: list[int], *, floor: int=0) -> int`.\n\n"
    asked += "Return the greatest of the numbers,\n\nbut no less than the floor."
    code = "def greatest(numbers: list[int], *, floor: int = 0) -> int:\n    # as the reader expects\n"
    assert found["s/f/greatest:5"] == (asked, f"```python\n{code}    return max([floor, *numbers])\n```")
    asked, code = found["s/f/waited:15"]
    assert asked.startswith("Write the Python function `async waited(seconds)`.")
    assert code == "```python\n@decorated\nasync def waited(seconds):\n    print(seconds)\n```"
    assert set(found) == {"s/f/greatest:5", "s/f/waited:15"} and made.train[0].license == "MIT"
    dropped = {
        "no_documented_function": 1,
        "no_syntax": 1,
        "private_or_test": 2,
        "short_docstring": 1,
        "trivial_body": 1,
    }
    assert made.accounting["dropped"] == dropped


def test_code_beside_a_prompt_is_no_file_of_functions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adapter 'prompt' makes prompt records"):
        curate(tmp_path, "demonstration", [source(tmp_path, "s", [{"prompt": "Write it.", "code": CODE}])])


def test_a_function_of_ones_own_gives_rows_a_known_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def shaped(row):\n    return {'question': row['q'].title(), 'answer': row['a']} if row['a'] else None\n"
    (tmp_path / "own_shape_of_rows.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = [{"q": "what", "a": "this"}, {"q": "none", "a": ""}, {"a": "no question"}]
    given = source(tmp_path, "s", lines, function="own_shape_of_rows:shaped")
    made = curate(tmp_path, "demonstration", [given], on_bad_row="quarantine", eval_fraction=0)
    assert [row.prompt[0].content for row in made.train] == ["What"]
    reasons = (made.output / "quarantine.jsonl").read_text()
    assert "own_shape_of_rows:shaped returned None; return the columns of a row" in reasons
    assert "own_shape_of_rows:shaped raised KeyError: 'q'" in reasons
    with pytest.raises(UsageError, match=r"source 's': function: 'own_shape_of_rows:gone'"):
        again = tmp_path / "again"
        again.mkdir()
        curate(again, "demonstration", [source(again, "s", lines, function="own_shape_of_rows:gone")])
