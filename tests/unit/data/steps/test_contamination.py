"""Rows that hold an evaluation item, and rows that only share something with one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from curated_data import Curated, curate, qa, source

from posttrain.data.config.steps import ContaminationConfig
from posttrain.data.steps.contamination import Said, check_recall, planted_recall
from posttrain.data.steps.fates import Item
from posttrain.data.steps.sought import index_of
from posttrain.data.steps.trail import read_trail
from posttrain.stage.errors import UsageError

LONG = (
    "Natalia sold clips to forty eight of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
PASSAGE = (
    "On the first morning of the fair an old man from the hills left a box of letters at the gate of the town hall, "
    "and nobody who passed by on the way to the market dared to open it before the mayor came back from her journey."
)
DECIDE = "Decide with care whether the statement below is true and say yes or no only. Statement"
SHORT = "Which river flows through the city of Bamako?"


def cleaned(folder: Path, items: list[dict[str, Any]], rows: list[dict[str, Any]], **knobs: Any) -> Curated:
    (folder / "items").mkdir()
    asked = curate(folder / "items", "evaluation", [source(folder, "items", items)])
    steps = {"order": ["contamination"], "contamination": knobs}
    rows = [*rows, qa("What shall we have for dinner tonight, my dear?", "Soup, and then some bread with cheese.")]
    made = source(folder, "rows", rows)
    return curate(folder, "demonstration", [made], {"items": asked}, steps=steps, eval_fraction=0)


def item(prompt: str, reference: str = "72") -> dict[str, Any]:
    return {"prompt": prompt, "reference": reference, "scorer": "exact"}


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        (SHORT, qa(f"Tell me, please: {SHORT.upper()} And why?", "The Niger.")),
        (SHORT, qa("Write a quiz.", "1. which river flows through the city of Bamako")),
        (LONG, qa(f"Solve this.\n\n{LONG}\nThink.", "72")),
        (LONG, qa("A riddle!", LONG.replace("forty eight", "fifty nine").replace(",", " ;"))),
        (LONG, qa(LONG.replace("altogether", "in total"), "72")),
        ("中国的首都是哪个城市呢?", qa("请回答:中国的首都是哪个城市呢?谢谢", "北京")),
        ("What is it?", qa("what is it", "A thing.")),
    ],
)
def test_a_row_that_says_an_item_drops_and_names_it(tmp_path: Path, asked: str, row: dict[str, Any]) -> None:
    made = cleaned(tmp_path, [item(asked) | {"id": "x"}], [row])
    reason = {entry["reason"] for entry in read_trail(made.output)}
    assert made.accounting["kept"] == 1
    assert reason <= {"contaminated_prompt", "in_evaluation_items"}
    (entry,) = read_trail(made.output)
    assert entry["lost_to"].get("item", "items/x") == "items/x"


def test_a_long_answer_that_stands_in_a_row_drops_it_and_a_short_one_does_not(tmp_path: Path) -> None:
    answer = "In April she sold forty eight clips, in May twenty four of them, and so the sum of both is seventy two."
    rows = [qa("Go.", f"Well. {answer}"), qa("It is?", "seventy two")]
    made = cleaned(tmp_path, [item("Q one?", answer), item("Q two?", "seventy two")], rows)
    assert made.accounting["dropped"] == {"contaminated_answer": 1}


@pytest.mark.parametrize(
    ("items", "row"),
    [
        (["What is it?"], qa("Look there! What is it? A bird.", "Yes, a bird.")),
        ([LONG.replace("forty eight", "48")], qa(LONG.replace("forty eight", "52"), "78")),
        # Another question about the same text, and another part in its middle.
        ([f"{PASSAGE} Who wrote it?"], qa(f"{PASSAGE} Name its colour.", "Red.")),
        ([PASSAGE], qa(PASSAGE.replace("left a box of letters", "bought some bread and cheese"), "Well.")),
        ([SHORT], qa("Which river flows through the city of Paris?", "The Seine.")),
        (["What is 12 + 7 times 3 in all?"], qa("What is 12 - 7 times 3 in all?", "-9")),
        (
            ['Who wrote "To be, or not to be, that is the question: whether tis nobler in the mind to suffer"?'],
            qa("Quote!", "To be, or not to be, that is the question: whether tis nobler in the mind to suffer"),
        ),
        (
            ["By the rule x = (-b + sqrt(b^2 - 4 a c)) / (2 a), what are the roots when a is 2 and b is 7?"],
            qa("Recall the rule.", "It is x = (-b + sqrt(b^2 - 4 a c)) / (2 a), as we all know."),
        ),
        (
            [f"{DECIDE}: {text}" for text in ("fish swim well", "birds fly far", "cats bark loudly")],
            qa(f"{DECIDE}: dogs sing often", "no"),
        ),
    ],
)
def test_what_only_shares_a_template_a_quotation_or_a_formula_stays(
    tmp_path: Path, items: list[str], row: dict[str, Any]
) -> None:
    made = cleaned(tmp_path, [item(text) for text in items], [row])
    assert made.accounting["dropped"] == {}


def test_items_are_planted_into_the_rows_and_their_recall_stands_in_the_account(tmp_path: Path) -> None:
    made = cleaned(tmp_path, [item(LONG), item(SHORT), item("What is it?")], [qa("Hello there, how are you?", "Fine.")])
    (step,) = made.accounting["flow"]
    assert step["facts"] == {"items": 3, "planted": {"planted": 3, "found": 3, "recall": 1.0}}


def test_what_is_not_sought_is_not_found() -> None:
    items = [Item("a", "items", LONG, ())]
    index = index_of(items, ContaminationConfig())
    rows = [Said("one row", ("one row",))]
    assert planted_recall(index, items, rows)["recall"] == 1
    assert planted_recall(dataclasses.replace(index, long={}), items, rows)["recall"] == 0


def test_too_low_a_recall_is_an_error_that_says_what_to_set() -> None:
    check_recall({"planted": 4, "found": 3, "recall": 0.75}, 0.75)
    with pytest.raises(UsageError, match=r"3 of 4 planted items .* set data.curate.steps.contamination.coverage"):
        check_recall({"planted": 4, "found": 3, "recall": 0.75}, 0.99)
