"""One prompt is on one side in all datasets of a pipeline, and what evaluation items ask is not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curated_data import Curated, curate, qa, questions, source

from posttrain.data.config.curate import RecordType
from posttrain.data.rows.splits import held_out_score
from posttrain.stage.errors import UsageError


class Pipeline:
    """Datasets that are curated one after the other, each in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.made: dict[str, Curated] = {}

    def curate(
        self, name: str, record_type: RecordType, rows: list[dict[str, Any]], split: str = "auto", **knobs: Any
    ) -> Curated:
        folder = self._root / name
        folder.mkdir()
        rows_of = [source(folder, name, rows, split=split)]
        self.made[name] = curate(folder, record_type, rows_of, dict(self.made), **knobs)
        return self.made[name]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def pair(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "a", "rejected": "b"}


def item(*turns: str) -> dict[str, Any]:
    roles = ["system", *["user", "assistant"] * len(turns)]
    prompt = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False) if c]
    return {"prompt": prompt, "reference": "r", "scorer": "exact"}


def chat(*turns: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(turns)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]}


def test_the_last_resort_of_one_dataset_holds_in_all(pipeline: Pipeline) -> None:
    names = ["a?", "b?", "c?"]
    drawn = min(names, key=lambda name: held_out_score(name, 0))
    first = pipeline.curate("demonstrations", "demonstration", [qa(name) for name in names], eval_fraction=0.001)
    assert questions(first.eval) == [drawn]
    rest = [pair(name) for name in names if name != drawn]
    second = pipeline.curate("comparisons", "comparison", [*rest, pair("d?")], eval_fraction=0.001)
    assert questions(second.eval) == ["d?"]
    more = pipeline.curate("more", "prompt", [{"prompt": name} for name in (drawn, "e?", "f?")], eval_fraction=0.001)
    assert questions(more.eval) == [drawn]
    third = pipeline.curate("prompts", "prompt", [{"prompt": name} for name in [*names, "d?"]], eval_fraction=0.9)
    assert questions(third.eval) == [drawn, "d?"]


def test_what_an_earlier_dataset_was_told_to_do_holds_in_all(pipeline: Pipeline) -> None:
    pipeline.curate("gold", "comparison", [pair(" A? ")], split="eval")
    pipeline.curate("trained", "demonstration", [qa("B?"), qa("C?")], split="train", eval_fraction=0)
    made = pipeline.curate("free", "comparison", [pair("a?"), pair("b?"), pair("c?")], eval_fraction=0.99)
    assert (questions(made.eval), questions(made.train)) == (["a?"], ["b?", "c?"])
    rows = [qa("a?"), qa("b?"), qa("d?")]
    trained = pipeline.curate("trained_anyway", "demonstration", rows, split="train", eval_fraction=0)
    assert questions(trained.train) == ["b?", "d?"]
    assert trained.accounting["dropped"] == {"held_out_prompt": 1}
    assert trained.result.headline == "2 rows kept of 3 (held out prompt 1), nothing held out"
    held_out = pipeline.curate("held_out_anyway", "demonstration", [*rows, qa("e?")], split="eval")
    assert held_out.result.consulted == ["gold", "trained", "free", "trained_anyway"]
    assert questions(held_out.eval) == ["a?", "e?"]
    assert held_out.accounting["dropped"] == {"trained_on_prompt": 2}


def test_what_evaluation_items_ask_is_not_trained_on(pipeline: Pipeline) -> None:
    pipeline.curate("items", "evaluation", [item("Be brief.", f"Question  {n}?") for n in range(58)])
    rows = [qa(f"question {n}?") for n in range(60)]
    made = pipeline.curate("demonstrations", "demonstration", rows, eval_fraction=0.2)
    drawn = {f"question {n}?" for n in range(60) if held_out_score(f"question {n}?", 0) < 0.2}
    assert questions(made.train) == [q for q in ("question 58?", "question 59?") if q not in drawn]
    assert {*questions(made.eval)} == drawn
    dropped = 58 - len(drawn - {"question 58?", "question 59?"})
    assert made.accounting["dropped"] == {"in_evaluation_items": dropped}
    assert f"(in evaluation items {dropped})" in made.result.headline


def test_a_question_is_found_wherever_it_stands_in_a_conversation(pipeline: Pipeline) -> None:
    rows = [item("", "Why is the sky blue?"), item("", "Tell me a joke.", "Knock, knock.", "Who is there?")]
    pipeline.curate("items", "evaluation", rows)
    chats = [
        chat("Hi", "Hello!", "why is the  SKY blue?", "Rayleigh.", "Thanks", "Welcome."),
        chat("Tell me a joke.", "Knock, knock.", "Who is there?", "Atch.", "Atch who?", "Bless you."),
        chat("Tell me a joke.", "No."),
        chat("Who is there?", "I."),
    ]
    made = pipeline.curate("demonstrations", "demonstration", chats, eval_fraction=0)
    assert [record.completion[0].content for record in made.train] == ["No.", "I."]
    assert made.accounting["dropped"] == {"in_evaluation_items": 2}


def test_an_overlap_with_items_can_be_an_error_or_stay_noted(pipeline: Pipeline) -> None:
    pipeline.curate("items", "evaluation", [item("", "A?")])
    rows = [{"prompt": "a?"}, {"prompt": "b?"}, {"prompt": "A ?"}]
    with pytest.raises(UsageError, match=r"1 of 3 rows ask what evaluation items .* first refused/.*; take them out"):
        pipeline.curate("refused", "prompt", rows, eval_fraction=0, item_overlap="error")
    kept = pipeline.curate("kept", "prompt", rows, eval_fraction=0, item_overlap="keep")
    assert questions(kept.train) == ["a?", "b?", "a ?"]
    assert kept.accounting["noted"] == {"in_evaluation_items": 1}
    with pytest.raises(UsageError, match=r"1 of 1 rows ask what .* and no other row is left to train on"):
        pipeline.curate("nothing_left", "demonstration", [qa("A?")], eval_fraction=0)


def test_an_input_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    empty = curate(tmp_path, "prompt", [source(tmp_path, "s", [{"prompt": "a?"}])])
    (empty.output / "dataset.json").unlink()
    (tmp_path / "later").mkdir()
    with pytest.raises(UsageError, match=r"inputs.items: .*out is no dataset"):
        curate(tmp_path / "later", "prompt", [source(tmp_path, "s", [{"prompt": "a?"}])], {"items": empty})
