"""Lists of responses with scores: the higher score is the better rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, source

from posttrain.data.sources.adapters import detect
from posttrain.data.sources.row_values import RowError


def convert(row: dict[str, Any]) -> tuple[str, Any]:
    adapter = detect(row, "comparison")
    return adapter.name, adapter.converter("comparison")(row)


def rated(text: str, *ratings: str, **keys: Any) -> dict[str, Any]:
    return {"response": text, "annotations": {str(n): {"Rating": rating} for n, rating in enumerate(ratings)}, **keys}


@pytest.mark.parametrize(
    ("completions", "ranks"),
    [
        ([{"response": "a", "overall_score": 3}, {"response": "b", "overall_score": "8.5"}], [2, 1]),
        ([{"text": "a", "score": 1}, {"text": "b", "score": 1}, {"text": "c", "score": 0}], [1, 1, 2]),
        ([rated("a", "5", "N/A"), rated("b", "4", "2"), rated("c", "3", "3")], [1, 2, 2]),
        ([rated("a", "5", overall_score=1), rated("b", "1", overall_score=9)], [2, 1]),
        ([rated("a", "5", overall_score=None), rated("b", "1", overall_score=9)], [1, 2]),
    ],
)
def test_objects_are_ranked_by_one_score_that_all_have(completions: list[Any], ranks: list[int]) -> None:
    name, made = convert({"instruction": "A?", "completions": completions})
    assert name == "scored"
    assert made["prompt"] == [{"role": "user", "content": "A?"}]
    assert made["ranks"] == ranks
    assert [turn["content"] for turn in made["responses"]] == ["a", "b", "c"][: len(ranks)]


def test_lists_of_texts_and_scores_are_ranked() -> None:
    name, made = convert({"prompt": "A?", "responses": ["a", "b"], "scores": [-1.5, 2]})
    assert (name, made["ranks"]) == ("scores", [2, 1])
    assert convert({"prompt": "A?", "responses": '["a", "b"]', "scores": "[1, 0]"})[1]["ranks"] == [1, 2]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "A?", "responses": ["a", "b"], "scores": [1]}, r"^scores \[1\]: must be a list of 2 numbers"),
        ({"prompt": "A?", "responses": ["a", "b"], "scores": [1, "x"]}, r"^scores\[1\] 'x': must be a number"),
        ({"prompt": "A?", "responses": ["a", "b"], "scores": [1, float("nan")]}, r"^scores\[1\] nan: must be a number"),
        (
            {"prompt": "A?", "completions": [rated("a", "5"), {"response": "b"}]},
            r"^completions\[1\] {'response': 'b'}: no score that all completions of the row have; give each a number",
        ),
        ({"prompt": "A?", "completions": [{"score": 1}, {"score": 2}]}, r"^completions\[0\] .*: must hold its text as"),
        (
            {"prompt": "A?", "instruction": "B?", "completions": [rated("a", "5"), rated("b", "4")]},
            "^columns prompt, instruction: give exactly one of the two",
        ),
    ],
)
def test_scores_that_do_not_rank_are_refused(row: dict[str, Any], fault: str) -> None:
    with pytest.raises(RowError, match=fault):
        convert(row)


def test_what_completions_hold_besides_is_named(tmp_path: Path) -> None:
    completions = [rated("a", "5", custom_system_prompt="Be kind. " * 20, model="x"), rated("b", "4")]
    row = {"instruction": "A?", "completions": completions, "models": ["x", "y"]}
    made = curate(tmp_path, "comparison", [source(tmp_path, "s", [row])], eval_fraction=0)
    assert made.accounting["by_source"]["s"]["ignored_columns"] == {
        "completions[].custom_system_prompt": 1,
        "completions[].model": 1,
        "models": 1,
    }
    assert made.accounting["by_source"]["s"]["ignored_content"] == {"completions[].custom_system_prompt": 1}
