"""Passages put into the prompts of datasets, and comparisons made of what they bear out and what they do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.data import contrast, owners, retrieve
from posttrain.data.chat.passages import passages_of
from posttrain.data.checks.attribution import attribute
from posttrain.data.checks.scorers import score
from posttrain.data.config.contrast import ContrastConfig
from posttrain.data.config.owners import OwnersConfig
from posttrain.data.config.retrieve import RetrieveConfig
from posttrain.data.messages import Message, message_dicts
from posttrain.data.records import (
    SPLITS,
    Comparison,
    Demonstration,
    EvaluationItem,
    Prompt,
    Record,
    read_records,
    write_dataset,
)
from posttrain.stage.errors import UsageError

TEXTS = ["Ana Ruiz has a dog.", "Tom Ruiz has a cat.", "Ana Berg has a boat.", "Nobody has time."]


def turn(role: Any, content: str) -> Message:
    return Message(role=role, content=content)


def documents() -> list[Demonstration]:
    return [
        Demonstration(id=f"c/{n}", source="c", license=f"L{n}", prompt=[], completion=[turn("assistant", text)])
        for n, text in enumerate(TEXTS)
    ]


def demonstration(name: str, said: str, *before: Message, split: Any = "train") -> Demonstration:
    prompt = [*before, turn("user", f"What does {name} have?")]
    shared = {"id": f"d/{name} {said}", "source": "d", "language": "en", "split": split}
    return Demonstration(**shared, prompt=prompt, completion=[turn("assistant", said)])


def dataset(directory: Path, records: Sequence[Any], record_type: type[Record]) -> Path:
    directory.mkdir(parents=True)
    write_dataset(directory, records, record_type)
    return directory


def run(stage: Any, config: Any, root: Path, **inputs: Path) -> tuple[Path, Any]:
    output = root / f"out{len(list(root.iterdir()))}"
    output.mkdir()
    context: Any = SimpleNamespace(spec=SimpleNamespace(seed=0), output=output, inputs=inputs)
    return output, stage.run(config, context)


def retrieved(root: Path, records: Sequence[Any], record_type: type[Record], **knobs: Any) -> tuple[list[Any], Any]:
    corpus = dataset(root / "corpus", documents(), Demonstration)
    data = dataset(root / "data", records, record_type)
    output, result = run(retrieve, RetrieveConfig(**knobs), root, corpus=corpus, data=data)
    made = [record for split in SPLITS for record in read_records(output / f"{split}.parquet", record_type)]
    return made, SimpleNamespace(result=result, output=output)


def test_prompts_carry_the_best_passages_behind_their_own_system_message(tmp_path: Path) -> None:
    rows = [demonstration("Ana Ruiz", 'A dog. "Ana Ruiz has a dog."', turn("system", "Be brief."), split="eval")]
    (row,), _ = retrieved(tmp_path, rows, Demonstration, passages=2, instruction="Quote.")
    system, user = row.prompt
    assert system.content.split("\n\n") == ["Be brief.", "Quote.", f"[1] {TEXTS[0]}", f"[2] {TEXTS[1]}"]
    assert (user.content, row.split, row.completion) == ("What does Ana Ruiz have?", "eval", rows[0].completion)


@pytest.mark.parametrize(("missed", "kept", "dropped"), [("drop", 2, {"gold_not_found": 1}), ("keep", 3, {})])
def test_what_quotes_no_passage_is_counted(tmp_path: Path, missed: str, kept: int, dropped: dict[str, int]) -> None:
    said = ['"Ana Ruiz has a dog."', '"Ana Ruiz has a yacht."', "I don't know."]
    made, run_ = retrieved(tmp_path, [demonstration("Ana Ruiz", text) for text in said], Demonstration, missed=missed)
    account = json.loads((run_.output / "accounting.json").read_text(encoding="utf-8"))
    assert (len(made), account["dropped"]) == (kept, dropped)
    figures = json.loads((run_.output / "retrieval.json").read_text(encoding="utf-8"))
    assert (figures["known"], figures["hits"], figures["hit_rate"]) == (2, 1, 0.5)
    assert run_.result.licenses[:2] == ["L0", "L1"]  # of the passages that stand in prompts


def test_items_stay_and_are_judged_by_what_was_found(tmp_path: Path) -> None:
    def item(name: str, gold: list[str]) -> EvaluationItem:
        prompt = [turn("user", f"What does {name} have?")]
        return EvaluationItem(
            id=name, source="e", split="eval", prompt=prompt, reference=json.dumps({"gold": gold}), scorer="grounded"
        )

    rows = [item("Ana Ruiz", [TEXTS[0]]), item("Ana Ruiz II", [TEXTS[2]]), item("Zoe", [])]
    made, run_ = retrieved(tmp_path, rows, EvaluationItem, passages=1)
    known = '"Ana Ruiz has a dog."'
    assert [score("grounded", known, row.reference) for row in made] == [1.0, 0.0, 0.0]
    assert [score("grounded", "I don't know.", row.reference) for row in made] == [0.0, 1.0, 1.0]
    noted = json.loads((run_.output / "accounting.json").read_text(encoding="utf-8"))["noted"]
    assert noted == {"gold_not_found": 1, "nothing_found": 1}
    assert run_.result.metrics["hit_rate"] == 0.5


def test_all_turns_of_the_user_may_be_searched_for(tmp_path: Path) -> None:
    prompt = [turn("user", "Who is Berg?"), turn("assistant", "Ana."), turn("user", "And what has she?")]
    rows = [Prompt(id="p", source="p", prompt=prompt)]
    for question, first in (("last", "Nobody has time."), ("conversation", "Ana Berg has a boat.")):
        (row,), _ = retrieved(tmp_path / question, rows, Prompt, passages=1, question=question)
        assert passages_of(message_dicts(row.prompt)) == [first]


@pytest.mark.parametrize(
    ("corpus", "data", "fault"),
    [
        ("questions", "questions", r"inputs\.corpus: d/Ana Ruiz .* has a prompt; give plain texts alone"),
        ("texts", "texts", r"inputs\.data: c/0 has no prompt to put passages before"),
        ("texts", "made_up", r"no row kept of 1 \(dropped: \{'gold_not_found': 1\}\); give a corpus"),
    ],
)
def test_what_cannot_be_retrieved_for_is_an_error(tmp_path: Path, corpus: str, data: str, fault: str) -> None:
    folders = {
        "questions": dataset(tmp_path / "q", [demonstration("Ana Ruiz", "A dog.")], Demonstration),
        "made_up": dataset(tmp_path / "m", [demonstration("Ana Ruiz", '"She has all."')], Demonstration),
        "texts": dataset(tmp_path / "t", documents(), Demonstration),
    }
    with pytest.raises(UsageError, match=fault):
        run(retrieve, RetrieveConfig(), tmp_path, corpus=folders[corpus], data=folders[data])


def contrasted(root: Path, rows: Sequence[Demonstration], **knobs: int) -> list[Comparison]:
    output, _ = run(contrast, ContrastConfig(**knobs), root, data=dataset(root / "rows", rows, Demonstration))
    return [row for split in SPLITS for row in read_records(output / f"{split}.parquet", Comparison)]


def test_what_is_borne_out_is_ranked_first_and_all_else_does_less(tmp_path: Path) -> None:
    said = {"Ana Ruiz": 'A dog. "Ana Ruiz has a dog."', "Ana Berg": 'A boat. "Ana Berg has a boat."'}
    said |= {"Tom Berg": "I don't know.", "Tom Ruiz": 'A yacht. "Tom Ruiz has a yacht."'}
    rows, _ = retrieved(tmp_path, [demonstration(*pair) for pair in said.items()], Demonstration, missed="keep")
    made = contrasted(tmp_path, rows, responses=8)
    by_question = {row.prompt[-1].content: row for row in made}
    assert len(by_question) == 4
    for name, text in said.items():
        row = by_question[f"What does {name} have?"]
        best, *others = [response.content for response in row.responses]
        assert best == ("I don't know." if name == "Tom Ruiz" else text)
        assert row.ranks[0] == 1 and all(rank > 1 for rank in row.ranks[1:])
        assert len(others) == len({*others}) >= 1
    ana = by_question["What does Ana Ruiz have?"]
    ranked = dict(zip((response.content for response in ana.responses), ana.ranks, strict=True))
    assert ranked["I don't know."] == 2
    assert ranked['A boat. "Ana Berg has a boat."'] == 3  # the answer to another passage
    altered = [text for text, rank in ranked.items() if rank == 3 and attribute(text, TEXTS).unsupported]
    assert altered, "one says what no passage does"
    tom = by_question["What does Tom Ruiz have?"]
    assert ("A yacht." in tom.responses[1].content, tom.ranks[1]) == (True, 3)


def test_responses_of_the_other_side_are_not_borrowed(tmp_path: Path) -> None:
    held = [demonstration("Ana Berg", 'A boat. "Ana Berg has a boat."', split="eval")]
    rows, _ = retrieved(tmp_path, [*held, demonstration("Tom Berg", "I don't know.")], Demonstration)
    with pytest.raises(UsageError, match=r"data\.contrast: .*'nothing_to_contrast': 1"):
        contrasted(tmp_path, [row for row in rows if row.split == "train"])


@pytest.mark.parametrize(
    ("said", "passage", "retold"),
    [
        ('A dog. "Ana Ruiz has a dog."', "Tom Ruiz has a cat.", 'A cat. "Tom Ruiz has a cat."'),
        ('Un perro. "Ana tiene un perro."', "Ana tiene una casa.", 'Una casa. "Ana tiene una casa."'),
        ('A dog. "Ana Ruiz has a dog."', "Ana Ruiz has a dog. She likes it.", None),  # the same answer
        ("A dog.", "Tom Ruiz has a cat.", None),
    ],
)
def test_an_answer_is_retold_for_another_passage(said: str, passage: str, retold: str | None) -> None:
    assert contrast.retell(said, passage) == retold


def test_questions_on_owners_are_as_many_as_asked_for_and_as_often_unanswerable(tmp_path: Path) -> None:
    config = OwnersConfig(num_families=60, num_demonstrations=100, num_evaluation_items=20, made_up_rate=0.0)
    output, _ = run(owners, config, tmp_path)
    rows = {
        name: [json.loads(line) for line in (output / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("corpus", "demonstrations", "evaluation")
    }
    assert {name: len(made) for name, made in rows.items()} == {"corpus": 180, "demonstrations": 100, "evaluation": 20}
    texts = [row["text"] for row in rows["corpus"]]
    assert len({*texts}) == 180
    for name in ("demonstrations", "evaluation"):
        assert sum(row["task"] == "unanswerable" for row in rows[name]) == round(0.3 * len(rows[name]))
    for row in rows["evaluation"]:
        reference = json.loads(row["reference"])
        assert bool(reference["gold"]) == (row["task"] == "answerable")
        assert score("grounded", row["ideal"], json.dumps(reference | {"passages": texts})) == 1.0
    with pytest.raises(UsageError, match=r"data\.owners\.num_families=9999: there are names for 48\d\d; ask for no"):
        run(owners, OwnersConfig(num_families=9999), tmp_path)
    with pytest.raises(UsageError, match=r"data\.owners\.num_evaluation_items=100: 27 such questions for 70"):
        run(owners, OwnersConfig(num_families=60, num_demonstrations=100, num_evaluation_items=100), tmp_path)
