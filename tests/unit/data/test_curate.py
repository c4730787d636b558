"""Curation: what stays, what drops under which reason, and on which side a prompt falls."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, qa, questions, source

from posttrain.data.config.curate import CurateConfig, SourceConfig
from posttrain.data.records import Comparison, Demonstration, EvaluationItem
from posttrain.data.rows.accounting import SourceCounts, accounting
from posttrain.data.rows.splits import held_out_score
from posttrain.data.sources.convert import clean_group
from posttrain.data.sources.row_values import Drop, RowError
from posttrain.data.sources.turns import assistant
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build


def test_records_carry_their_provenance_and_rows_win_over_sources(tmp_path: Path) -> None:
    lines = [qa("A?"), qa("B?", license="MIT", language="fi", task="chat", id=7, score=3)]
    knobs = {"license": "CC0-1.0", "language": "en", "task": "qa"}
    made = curate(tmp_path, "demonstration", [source(tmp_path, "mine", lines, **knobs)], eval_fraction=0)
    first, second = made.train
    assert (first.source, first.license, first.language, first.task) == ("mine", "CC0-1.0", "en", "qa")
    assert (second.id, second.license, second.language, second.task) == ("mine/7", "MIT", "fi", "chat")
    content = '[[["user","A?"]],[["assistant","Yes."]]]'
    assert first.id == f"mine/{hashlib.blake2b(content.encode(), digest_size=12).hexdigest()}"
    assert made.result.licenses == ["CC0-1.0", "MIT"]
    assert made.result.headline == "2 rows kept of 2, nothing held out"
    assert made.result.facts["sources"]["mine"] == {"adapter": "question_answer", "ignored_columns": {"score": 1}}


def test_exact_duplicates_drop_and_the_first_source_keeps_its_row(tmp_path: Path) -> None:
    accented = "Caf\u00e9?"
    first = source(tmp_path, "first", [qa(accented), qa("B?"), qa("B?")])
    second = source(tmp_path, "second", [qa(unicodedata.normalize("NFD", accented)), qa("B?", "No.")])
    made = curate(tmp_path, "demonstration", [first, second], eval_fraction=0)
    assert [(r.source, r.completion[0].content) for r in made.train] == [
        ("first", "Yes."),
        ("first", "Yes."),
        ("second", "No."),
    ]
    assert made.accounting == {
        "rows_in": 5,
        "kept": 3,
        "dropped": {"duplicate": 2},
        "by_source": {
            "first": {"rows_in": 3, "kept": 2, "dropped": {"duplicate": 1}, "train": 2, "eval": 0},
            "second": {"rows_in": 2, "kept": 1, "dropped": {"duplicate": 1}, "train": 1, "eval": 0},
        },
    }


def test_without_dedup_ids_stay_unique(tmp_path: Path) -> None:
    sources = [source(tmp_path, "s", [qa("A?"), qa("A?"), qa("A?", id="x")])]
    made = curate(tmp_path, "demonstration", sources, dedup=False, eval_fraction=0)
    first, second, third = (record.id for record in made.train)
    assert second == f"{first}-2"
    assert third == "s/x"


@pytest.mark.parametrize(
    ("own", "unique"),
    [
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a-2", "a", "a", "a-2", "a"], ["a-2", "a", "a-3", "a-2-2", "a-4"]),
        (["a", "a", "a-2-2", "a-2", "a-2"], ["a", "a-3", "a-2-2", "a-2", "a-2-3"]),
    ],
)
def test_numbered_ids_never_meet_those_that_rows_bring(tmp_path: Path, own: list[str], unique: list[str]) -> None:
    # Rows of one id must be equal, so each id has a question of its own.
    sources = [source(tmp_path, "s", [qa(f"{name}?", id=name) for name in own])]
    made = curate(tmp_path, "demonstration", sources, dedup=False, eval_fraction=0)
    assert [record.id for record in made.train] == [f"s/{name}" for name in unique]


def test_one_prompt_falls_on_one_side_in_every_dataset(tmp_path: Path) -> None:
    prompts = [f"Question {n}?" for n in range(400)]
    shouted = [qa(f"  QUESTION  {n}? ", "No.") for n in range(400)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    both = [source(tmp_path / "a", "one", [qa(p) for p in prompts]), source(tmp_path / "a", "two", shouted)]
    first = curate(tmp_path / "a", "demonstration", both, eval_fraction=0.2)
    pairs = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in reversed(prompts)]
    second = curate(tmp_path / "b", "comparison", [source(tmp_path / "b", "c", pairs)], eval_fraction=0.2)
    held_out = {p.lower() for p in prompts if held_out_score(p.lower(), 0) < 0.2}
    assert 50 < len(held_out) < 110
    assert set(questions(first.eval)) == set(questions(second.eval)) == held_out
    assert len(first.eval) == 2 * len(held_out)
    assert not held_out & {*questions(first.train), *questions(second.train)}


def test_another_split_seed_holds_other_prompts_out(tmp_path: Path) -> None:
    sources = [source(tmp_path, "s", [qa(f"Question {n}?") for n in range(100)])]
    (tmp_path / "other").mkdir()
    first = curate(tmp_path, "demonstration", sources, eval_fraction=0.2)
    second = curate(tmp_path / "other", "demonstration", sources, eval_fraction=0.2, split_seed=1)
    assert set(questions(first.eval)) != set(questions(second.eval))


def test_a_small_dataset_still_holds_one_cluster_out(tmp_path: Path) -> None:
    names = ["a?", "b?", "c?"]
    assert min(held_out_score(name, 0) for name in names) > 0.001
    sources = [source(tmp_path, "s", [qa(name, answer) for name in names for answer in ("Yes.", "No.")])]
    made = curate(tmp_path, "demonstration", sources, eval_fraction=0.001)
    assert questions(made.eval) == [min(names, key=lambda name: held_out_score(name, 0))] * 2


def test_a_single_cluster_stays_in_train(tmp_path: Path) -> None:
    sources = [source(tmp_path, "s", [qa("a?"), qa("A?", "No.")])]
    made = curate(tmp_path, "demonstration", sources, eval_fraction=0.001)
    assert (len(made.train), len(made.eval)) == (2, 0)


def test_prompts_of_an_eval_source_leave_train_even_when_the_train_source_comes_first(tmp_path: Path) -> None:
    train = source(tmp_path, "train", [qa("Shared?"), qa("Shared?", "No."), qa("Own?")], split="train")
    held_out = source(tmp_path, "held_out", [qa("shared?")], split="eval")
    made = curate(tmp_path, "demonstration", [train, held_out], eval_fraction=0.5)
    assert questions(made.train) == ["own?"]
    assert [record.source for record in made.eval] == ["held_out"]
    assert made.accounting["by_source"]["train"]["dropped"] == {"held_out_prompt": 2}


def test_an_auto_source_never_trains_on_prompts_of_an_eval_source(tmp_path: Path) -> None:
    prompts = [f"Question {n}?" for n in range(60)]
    held_out = source(tmp_path, "held_out", [qa(p) for p in prompts[:30]], split="eval")
    auto = source(tmp_path, "auto", [qa(p, "No.") for p in prompts])
    made = curate(tmp_path, "demonstration", [held_out, auto], eval_fraction=0.4)
    drawn = {p.lower() for p in prompts if held_out_score(p.lower(), 0) < 0.4}
    shared = {p.lower() for p in prompts[:30]}
    assert shared & drawn and shared - drawn
    assert {*questions(made.train)} == {p.lower() for p in prompts[30:]} - drawn
    assert {*questions([record for record in made.eval if record.source == "auto"])} == drawn
    assert made.accounting["by_source"]["auto"]["dropped"] == {"held_out_prompt": len(shared - drawn)}


def test_a_cluster_is_the_whole_prompt(tmp_path: Path) -> None:
    def chat(*turns: str) -> dict[str, Any]:
        roles = ["system", *["user", "assistant"] * len(turns)]
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]}

    chats = [chat("Be brief.", "Hi", "Hello!", f"Question {n}?", answer) for n in range(200) for answer in ("A", "B")]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "chats", chats)], eval_fraction=0.2)
    clusters = [f"system: be brief.\nuser: hi\nassistant: hello!\nuser: question {n}?" for n in range(200)]
    held_out = {cluster for cluster in clusters if held_out_score(cluster, 0) < 0.2}
    assert 20 < len(held_out) < 60
    assert {*questions(made.eval)} == held_out
    assert {*questions(made.train)} == {*clusters} - held_out
    assert len(made.eval) == 2 * len(held_out)


def test_an_auto_source_follows_a_train_source(tmp_path: Path) -> None:
    prompts = [f"Question {n}?" for n in range(60)]
    train = source(tmp_path, "train", [qa(p) for p in prompts[:30]], split="train")
    auto = source(tmp_path, "auto", [qa(p, "No.") for p in prompts])
    made = curate(tmp_path, "demonstration", [train, auto], eval_fraction=0.4)
    assert not {*questions(made.eval)} & {*questions(made.train)}
    assert {*questions(made.eval)} == {p.lower() for p in prompts[30:] if held_out_score(p.lower(), 0) < 0.4}


def test_groups_are_cleaned(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "tied?", "responses": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "same?", "chosen": "a", "rejected": "a "},
        {"prompt": "silent?", "chosen": "a", "rejected": ""},
        {"prompt": "good?", "responses": ["c", "a", "a", "b"], "ranks": [3, 2, 1, 2], "annotator": "Ann"},
    ]
    rows[3]["ended"] = [True, False, True, True]
    pairs = source(tmp_path, "pairs", rows[1:3])
    ranked = source(tmp_path, "ranked", [rows[0], rows[3]])
    made = curate(tmp_path, "comparison", [pairs, ranked], eval_fraction=0)
    (kept,) = made.train
    assert isinstance(kept, Comparison)
    assert [turn.content for turn in kept.responses] == ["c", "a", "b"]
    assert (kept.ranks, kept.annotator) == ([3, 1, 2], "Ann")
    assert kept.ended == [True, False, True]
    assert made.accounting["dropped"] == {"all_tied": 1, "empty_response": 1, "identical_responses": 1}
    assert made.result.facts["sources"]["ranked"]["responses_removed"] == {"repeated": 1}


@pytest.mark.parametrize(
    ("responses", "ranks", "kept"),
    [(["a", "b", "a"], [1, 2, 3], [1, 2]), (["a", "b", "a "], [3, 2, 1], [1, 2]), (["b", "a", "a"], [3, 2, 4], [3, 2])],
)
def test_a_repeated_response_keeps_the_best_of_its_ranks(
    responses: list[str], ranks: list[int], kept: list[int]
) -> None:
    turns = [assistant(response) for response in responses]
    cleaned = clean_group({"responses": turns, "ranks": ranks})
    assert cleaned == ({"responses": turns[:2], "ranks": kept}, {"repeated": 1})


def said(*responses: str) -> list[dict[str, str]]:
    return [assistant(response) for response in responses]


def test_clean_group_reasons() -> None:
    assert clean_group({"responses": said("a", "", "a"), "ranks": [1, 2, 3]}) == Drop("identical_responses")
    assert clean_group({"responses": said("", "a"), "ranks": [1, 2]}) == Drop("empty_response")
    assert clean_group({"responses": said("a", "b", "a"), "ranks": [2, 1, 1]}) == Drop("all_tied")
    with pytest.raises(RowError, match="2 responses but 3 ranks"):
        clean_group({"responses": said("a", "b"), "ranks": [1, 2, 3]})
    with pytest.raises(RowError, match="2 responses but 1 ended"):
        clean_group({"responses": said("a", "b"), "ranks": [1, 2], "ended": [True]})


def test_the_same_ranking_by_two_annotators_is_no_duplicate(tmp_path: Path) -> None:
    row = {"prompt": "p?", "responses": ["a", "b"], "ranks": [1, 2]}
    swapped = {"prompt": "p?", "responses": ["b", "a"], "ranks": [2, 1]}
    lines = [{**row, "annotator": "Ann"}, {**row, "annotator": "Bo"}, {**swapped, "annotator": "Ann"}]
    made = curate(tmp_path, "comparison", [source(tmp_path, "s", lines)])
    assert [record.annotator for record in made.train] == ["Ann", "Bo"]


def test_evaluation_items_go_to_eval_and_name_their_scorer(tmp_path: Path) -> None:
    worked = source(tmp_path, "worked", [qa("1 + 1?", "So it is\n#### 2")])
    named = source(tmp_path, "named", [{"prompt": "JSON?", "reference": "{}", "scorer": "json"}], scorer="number")
    plain = source(tmp_path, "plain", [{"prompt": "Who?", "reference": "me"}])
    made = curate(tmp_path, "evaluation", [worked, named, plain])
    assert [(item.scorer, item.reference) for item in made.eval] == [("number", "2"), ("json", "{}"), ("exact", "me")]
    assert all(isinstance(item, EvaluationItem) for item in made.eval)
    assert made.train == []


BAD_LINES: list[tuple[dict[str, Any] | str, str]] = [
    ('{"question": "x"', "not JSON (Expecting ',' delimiter at column 17); mend it"),
    ({"question": "x"}, "no column 'answer'; adapter 'question_answer' needs answer, question"),
    (qa(""), "question '': empty content; write a text or remove the row"),
    (qa("x", id=1.5), "id 1.5: must be a text, not float; convert it"),
    (qa("x", license=3), "license 3: input should be a valid string"),
    (qa("x", id="one"), "id 'one': already used at 1 for another row; ids must differ, or ids=ignore"),
]
ASIDE = " (on_bad_row=quarantine sets bad rows aside)"


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_ends_the_stage_with_its_place(tmp_path: Path, line: dict[str, Any] | str, reason: str) -> None:
    mine = source(tmp_path, "s", [qa("good?", id="one"), line])
    with pytest.raises(UsageError) as caught:
        curate(tmp_path, "demonstration", [mine])
    assert str(caught.value) == f"{mine['path']}:2: {reason}{ASIDE}"


def test_bad_rows_can_be_quarantined_and_are_counted(tmp_path: Path) -> None:
    mine = source(tmp_path, "s", [*(line for line, _ in BAD_LINES[:-1]), qa("good?", id="one"), BAD_LINES[-1][0]])
    mine["adapter"] = "question_answer"
    made = curate(tmp_path, "demonstration", [mine], on_bad_row="quarantine")
    rows = [json.loads(line) for line in (made.output / "quarantine.jsonl").read_text().splitlines()]
    assert [row["place"] for row in rows] == [f"s.jsonl:{number}" for number in (1, 2, 3, 4, 5, 7)]
    assert [row["row"] for row in rows] == [line for line, _ in BAD_LINES]
    assert [row["reason"] for row in rows[:-1]] == [reason for _, reason in BAD_LINES[:-1]]
    assert made.accounting["dropped"] == {"quarantined": 6}
    assert questions(made.train) == ["good?"]


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    lines = [qa(f"{n}?") for n in range(9)]
    made = curate(tmp_path, "demonstration", [source(tmp_path, "s", lines, limit=3)], eval_fraction=0)
    assert questions(made.train) == ["0?", "1?", "2?"]
    assert made.accounting["rows_in"] == 3


def test_a_file_of_the_sources_artifact(tmp_path: Path) -> None:
    source(tmp_path, "demonstrations", [qa("A?")])
    made = curate(tmp_path, "demonstration", [{"name": "s", "file": "demonstrations.jsonl"}])
    assert isinstance(made.train[0], Demonstration)
    (tmp_path / "out").rename(tmp_path / "done")
    with pytest.raises(UsageError, match=r"no file 'demonstration.jsonl'.*did you mean 'demonstrations.jsonl'"):
        curate(tmp_path, "demonstration", [{"name": "s", "file": "demonstration.jsonl"}])


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    tied = {"prompt": "p?", "responses": ["a", "b"], "ranks": [1, 1]}
    with pytest.raises(UsageError, match=r"no row kept of 1 \(dropped: {'all_tied': 1}\)"):
        curate(tmp_path, "comparison", [source(tmp_path, "s", [tied])])


def test_sources_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="give exactly one of path, file and dataset \\(given: path, file\\)"):
        build(SourceConfig, {"name": "s", "path": "a.jsonl", "file": "b.jsonl"}, "sources")
    twice = [{"name": "s", "path": "a.jsonl"}, {"name": "s", "path": "b.jsonl"}]
    with pytest.raises(UsageError, match="source name 's' stands twice"):
        build(CurateConfig, {"record_type": "comparison", "sources": twice}, "curate")
    with pytest.raises(UsageError, match="adapter: 'sharegtp': input should be 'auto'"):
        build(SourceConfig, {"name": "s", "path": "a.jsonl", "adapter": "sharegtp"}, "sources")


def test_an_unknown_scorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scorer 'exakt' must be one of exact"):
        curate(tmp_path, "evaluation", [source(tmp_path, "s", [qa("a?")], scorer="exakt")])
    row = {"prompt": "p?", "reference": "r", "scorer": "exakt"}
    (tmp_path / "row").mkdir()
    with pytest.raises(UsageError, match=r"s.jsonl:1: scorer 'exakt': must be one of .* did you mean 'exact'"):
        curate(tmp_path / "row", "evaluation", [source(tmp_path / "row", "s", [row])])


def test_accounting_refuses_a_lost_row() -> None:
    lost = SourceCounts(rows_in=2)
    lost.keep("train")
    with pytest.raises(AssertionError, match="s: rows lost"):
        accounting({"s": lost})
    lost.drop("duplicate")
    assert accounting({"s": dataclasses.replace(lost)})["kept"] == 1
