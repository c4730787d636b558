"""Annotators of comparisons: their agreement beside published and written-out figures, and the rows that drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, source

from posttrain.data.messages import Message
from posttrain.data.records import Comparison
from posttrain.data.steps.judgements import agreement, by_unit, consensus, judgements_of, krippendorff_alpha

RELIABILITY = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
"""Four coders, twelve units: Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section C."""


def compared(annotator: str, responses: list[str], ranks: list[int], prompt: str = "Which?") -> Comparison:
    turns = [Message(role="assistant", content=text) for text in responses]
    asked = [Message(role="user", content=prompt)]
    return Comparison(id="r", source="s", prompt=asked, responses=turns, ranks=ranks, annotator=annotator)


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    units = [[float(coder[unit]) for coder in RELIABILITY if coder[unit] != "."] for unit in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_perfect_opposite_and_constant_judgements() -> None:
    assert krippendorff_alpha([[1, 1], [-1, -1], [0, 0, 0]]) == 1
    assert krippendorff_alpha([[1, -1], [-1, 1]]) == pytest.approx(1 - 16 / (2 * 4 * 4 / 3))
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [-1]]) is None, "what one judged says nothing of agreement"


def test_a_judgement_is_the_same_whichever_response_is_listed_first() -> None:
    one = compared("a", ["short", "a longer one", "third"], [1, 2, 2])
    other = compared("b", ["third", "a longer one", "short"], [2, 2, 1])
    units = by_unit(judgement for record in (one, other) for judgement in judgements_of(record))
    assert len(units) == 3
    for left, right in units.values():
        assert (left.value, left.log_length, left.listed) == (right.value, right.log_length, -right.listed)
    assert sorted(abs(own[0].value) for own in units.values()) == [0, 1, 1]


def test_the_better_one_has_the_lower_rank() -> None:
    (only,) = judgements_of(compared("a", ["worse", "much better"], [2, 1]))
    longer_is_better = only.value * only.log_length
    assert longer_is_better > 0
    assert only.value * only.listed < 0, "and it was listed second"


def test_agreement_and_consensus() -> None:
    assert (agreement([1]), agreement([1, 1]), agreement([1, -1]), agreement([1, 0])) == (1, 1, 0, 0.5)
    assert agreement([1, 1, -1]) == pytest.approx(1 / 3)
    assert (consensus([1, 1, -1]), consensus([1, -1]), consensus([-1, 0])) == (1, 0, -1)


def rows() -> list[dict[str, Any]]:
    agreed = [("Ann", [1, 2]), ("Bo", [1, 2]), ("Cy", [1, 2])]
    split = [("Ann", [1, 2]), ("Bo", [2, 1])]
    alone = [("Ann", [2, 1])]
    return [
        {"prompt": f"{name}?", "responses": [f"{name} one", f"{name} two"], "ranks": ranks, "annotator": who}
        for name, judged in (("agreed", agreed), ("split", split), ("alone", alone))
        for who, ranks in judged
    ]


def test_rows_of_a_prompt_drop_on_which_annotators_disagree(tmp_path: Path) -> None:
    steps = {"order": ["agreement"]}
    made = curate(tmp_path, "comparison", [source(tmp_path, "s", rows())], steps=steps, eval_fraction=0)
    assert made.accounting["dropped"] == {"annotators_disagree": 2}
    assert {row.prompt[0].content for row in made.train} == {"agreed?", "alone?"}
    facts = made.accounting["flow"][0]["facts"]
    assert (facts["pairs"], facts["judged_by_several"]) == (3, 2)
    # Values 1, 1, 1 and 1, −1, and the same from the other side: N = 10 of which all are preferences.
    assert facts["alpha"] == pytest.approx(1 - 2 * 2 * 4 / (2 * 10 * 10 / 9), abs=1e-4)


def test_what_two_annotators_say_of_the_same_answers_is_no_near_duplicate(tmp_path: Path) -> None:
    said = " ".join(f"word{number}" for number in range(60))
    judged = [
        {"prompt": "Which?", "responses": [f"{said} a", f"{said[::-1]} b"], "ranks": [1, 2], "annotator": who}
        for who in ("Ann", "Bo", "Bo")
    ]
    steps = {"order": ["near_duplicate"]}
    made = curate(tmp_path, "comparison", [source(tmp_path, "s", judged)], steps=steps, eval_fraction=0, dedup=False)
    assert made.accounting["dropped"] == {"near_duplicate": 1}
    assert [row.annotator for row in made.train] == ["Ann", "Bo"]
