"""Records on the disk while they are curated: the same ones, in order and by number, and few of them in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from curated_data import curate, qa, source

from posttrain.data.messages import Message, ToolCall
from posttrain.data.records import Comparison, Demonstration
from posttrain.data.rows.shelf import BATCH, Shelf, Shelves

CALL = ToolCall(name="add", arguments={"a": 1, "b": [None, 0.5, "…"]}, id="c1")


def demonstration(number: int) -> Demonstration:
    turns = [Message(role="user", content=f"{number}?"), Message(role="assistant", content="", tool_calls=[CALL])]
    return Demonstration(
        id=f"a/{number}",
        source="a",
        split="eval" if number % 3 == 0 else "train",
        prompt=[*turns, Message(role="tool", content="3", tool_call_id="c1")],
        completion=[Message(role="assistant", content="Käse", reasoning_content="hm")],
        tools=[{"type": "function", "function": {"name": "add"}}] if number % 2 else None,
        template_arguments={"enable_thinking": False} if number % 5 == 0 else None,
    )


@pytest.mark.parametrize("count", [0, 1, BATCH, 2 * BATCH + 7])
def test_what_was_put_there_is_read_as_it_was(tmp_path: Path, count: int) -> None:
    records = [demonstration(number) for number in range(count)]
    shelf = Shelf(tmp_path / "rows.arrow", Demonstration).filled(records)
    assert len(shelf) == count and bool(shelf) == bool(records)
    assert list(shelf) == records == list(shelf)
    assert [len(batch) for batch in shelf.batches()] == [BATCH] * (count // BATCH) + [count % BATCH] * (
        count % BATCH > 0
    )
    places = [place for place in (0, 1, BATCH - 1, BATCH, count - 1) if 0 <= place < count]
    assert [shelf[place] for place in places] == [records[place] for place in places]
    assert shelf[count // 2 : count // 2 + 3] == records[count // 2 : count // 2 + 3]
    with pytest.raises(IndexError, match=f"row {count} of {count}"):
        shelf[count]


def test_comparisons_keep_their_ranks(tmp_path: Path) -> None:
    responses = [Message(role="assistant", content=text) for text in "ab"]
    record = Comparison(
        id="a/1", source="a", prompt=[Message(role="user", content="?")], responses=responses, ranks=[2, 1], ended=None
    )
    assert list(Shelf(tmp_path / "rows.arrow", Comparison).filled([record])) == [record]


def test_one_shelf_is_left_and_what_a_killed_run_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "1.arrow").write_bytes(b"half a file")
    shelves = Shelves(tmp_path, Demonstration)
    records = shelves.empty().filled(demonstration(number) for number in range(4))
    records = shelves.of(record for record in records if record.split == "train")
    assert [record.id for record in records] == ["a/1", "a/2"]
    assert len(list(tmp_path.iterdir())) == 1
    shelves.remove()
    assert not list(tmp_path.iterdir())


def test_curation_holds_a_part_of_its_rows_in_memory(tmp_path: Path) -> None:
    length, rows = 20_000, 4 * BATCH
    lines = [qa(f"What of {number}?", f"{number}" + "x" * length) for number in range(rows)]
    given = source(tmp_path, "mine", lines)
    lines.clear()
    steps = {"order": ["licence", "near_duplicate", "mix"], "mix": {"rows": 10}}
    tracemalloc.start()
    try:
        made = curate(tmp_path, "demonstration", [given], steps=steps, eval_fraction=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(made.train) == 10
    assert peak < length * rows
