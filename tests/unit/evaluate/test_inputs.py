"""Policies are scored on what they were not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem, Prompt, Split, write_dataset
from posttrain.evaluate.inputs import read_evaluation_items
from posttrain.stage.errors import UsageError

ASKED = [Message(role="user", content="How many?")]


def item(name: str, split: Split) -> EvaluationItem:
    return EvaluationItem(id=name, source="hand", prompt=ASKED, reference="2", scorer="number", split=split)


def test_held_out_items_alone_are_scored_where_there_are_any(tmp_path: Path) -> None:
    write_dataset(tmp_path, [item("a", "train"), item("b", "eval"), item("c", "train")], EvaluationItem)
    assert [found.id for found in read_evaluation_items(tmp_path)] == ["b"]
    write_dataset(tmp_path, [item("a", "train"), item("c", "train")], EvaluationItem)
    assert [found.id for found in read_evaluation_items(tmp_path)] == ["a", "c"]


def test_records_without_a_reference_are_no_items(tmp_path: Path) -> None:
    write_dataset(tmp_path, [Prompt(id="a", source="hand", prompt=ASKED)], Prompt)
    with pytest.raises(UsageError, match="holds Prompt records; give a dataset of evaluation items"):
        read_evaluation_items(tmp_path)
