"""Near duplicates: which row drops, what it lost to, and what only looks alike."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from curated_data import Curated, curate, qa, source
from planted_rows import Words, similarity

from posttrain.data.steps.minhash import fingerprint, joined, shared_bands, shingles
from posttrain.data.steps.near_duplicates import lost_to
from posttrain.data.steps.trail import read_trail

WORDS = Words(random.Random(3))


def near(folder: Path, rows: list[dict[str, Any]], **knobs: Any) -> Curated:
    steps = {"order": ["near_duplicate"], "near_duplicate": knobs}
    return curate(folder, "demonstration", [source(folder, "s", rows)], steps=steps, eval_fraction=0)


def edited(text: str, places: list[int]) -> str:
    said = text.split()
    for place in places:
        said[place] = "quux"
    return " ".join(said)


def test_a_near_duplicate_drops_and_names_the_row_that_stays(tmp_path: Path) -> None:
    question, answer = WORDS.text(20), WORDS.text(80)
    other = edited(answer, [40])
    made = near(tmp_path, [qa(question, answer, id="a"), qa(question.upper(), other, id="b"), qa("C?", WORDS.text(50))])
    assert [record.id for record in made.train][:1] == ["s/a"]
    assert made.accounting["dropped"] == {"near_duplicate": 1}
    (entry,) = read_trail(made.output)
    assert (entry["id"], entry["what"], entry["lost_to"]["id"]) == ("s/b", "dropped", "s/a")
    assert entry["row"]["completion"][0]["content"] == other
    expected = similarity(f"{question} {answer}", f"{question} {other}")
    assert entry["lost_to"]["jaccard"] == pytest.approx(expected, abs=1e-3)


def test_a_chain_of_small_changes_takes_out_only_what_is_like_a_row_that_stays(tmp_path: Path) -> None:
    text = WORDS.text(100)
    chain = [edited(text, list(range(0, 12 * step, 12))) for step in range(8)]
    made = near(tmp_path, [qa("Tell me.", said, id=str(place)) for place, said in enumerate(chain)])
    kept = {record.id: record.completion[0].content for record in made.train}
    assert 1 < len(kept) < len(chain)
    for entry in read_trail(made.output):
        lost = entry["row"]["completion"][0]["content"]
        assert similarity(f"Tell me. {kept[entry['lost_to']['id']]}", f"Tell me. {lost}") >= 0.8


def test_a_row_to_train_on_loses_to_its_near_duplicate_in_eval_wherever_that_stands(tmp_path: Path) -> None:
    question, answer = WORDS.text(20), WORDS.text(80)
    train = source(tmp_path, "train", [qa(question, answer), qa("Else?", WORDS.text(30))], split="train")
    held = source(tmp_path, "held", [qa(edited(question, [5]), answer)], split="eval")
    made = curate(tmp_path, "demonstration", [train, held], steps={"order": ["near_duplicate"]})
    assert made.accounting["dropped"] == {"near_duplicate_of_held_out": 1}
    assert [len(made.train), len(made.eval)] == [1, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("A baker sells {n} loaves. " * 6).format(n=12), ("A baker sells {n} loaves. " * 6).format(n=13)),
        ("Is it so? " + "This is what the long statement says in all detail. " * 3, None),
    ],
)
def test_rows_of_one_template_are_no_duplicates(tmp_path: Path, one: str, other: str | None) -> None:
    rows = [qa(one, "It is forty two."), qa(other or f"{one} Well?", "It is forty two." if other else "No, never.")]
    assert similarity(rows[0]["question"], rows[1]["question"], 3) > 0 or other
    assert len(near(tmp_path, rows).train) == 2


def test_two_answers_to_one_long_question_are_two_rows(tmp_path: Path) -> None:
    question = WORDS.text(150)
    assert len(near(tmp_path, [qa(question, WORDS.text(12)), qa(question, WORDS.text(12))]).train) == 2


@pytest.mark.parametrize(
    "text",
    [
        "我们今天去公园散步然后回家吃饭看电视睡觉明天早上再去上班工作学习晚上和朋友一起唱歌跳舞",
        "วันนี้เราไปเดินเล่นที่สวนสาธารณะแล้วกลับบ้านกินข้าว",
    ],
)
def test_scripts_without_spaces_have_near_duplicates_too(tmp_path: Path, text: str) -> None:
    made = near(tmp_path, [qa(text, text), qa(f"{text[:-1]}。", f"{text}!"), qa(text[::-1], text[::-1])])
    assert made.accounting["dropped"] == {"near_duplicate": 1}


def test_texts_without_words_and_answers_of_one_word_resemble_nothing(tmp_path: Path) -> None:
    assert len(near(tmp_path, [qa("!!!", "..."), qa("???", "---"), qa("a?", "b"), qa("a?", "c")]).train) == 4


def test_the_bands_of_a_text_depend_on_its_words_alone() -> None:
    texts = [WORDS.text(60) for _ in range(40)]
    texts.append(texts[7].upper())
    together = fingerprint(texts, 5)
    alone = fingerprint([texts[7]], 5)
    assert (together.signatures[7] == alone.signatures[0]).all()
    assert (shared_bands(together)[7] == shared_bands(together)[40]).all()
    runs = [shingles(text, 5) for text in texts]
    assert lost_to(together, range(41), 0.8, runs.__getitem__, lambda one, other: True) == {40: (7, 1.0)}


def test_prints_of_batches_join_to_those_of_all_and_are_held_once() -> None:
    texts = [WORDS.text(30) for _ in range(20)] + [""]
    parts = [fingerprint(texts[start : start + 8], 5) for start in range(0, 21, 8)]
    made, whole = joined(parts), fingerprint(texts, 5)
    assert (made.signatures == whole.signatures).all() and made.empty.tolist() == [False] * 20 + [True]
    assert parts == [], "what was joined is held once"


def test_workers_and_shards_change_no_byte(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [WORDS.text(rng.randint(20, 60)) for _ in range(600)]
    rows = [qa(text, f"{text} mail joe{place % 9}@mail.org") for place, text in enumerate(texts + texts[:80])]
    rows.append(qa(WORDS.text(30), "I'm sorry, but I can't help with that."))  # noted, and otherwise as it came
    made = [sharded(tmp_path, rows, shards, workers) for shards, workers in ((1, 1), (2, 2), (7, 1))]
    assert made[0] == made[1] == made[2]
    assert b"near_duplicate" in made[0]["dropped.jsonl"] and b'"what": "noted"' in made[0]["dropped.jsonl"]


def sharded(root: Path, rows: list[dict[str, Any]], shards: int, workers: int) -> dict[str, bytes]:
    """Return the files of what comes of rows in several files, by several processes."""
    folder = root / str(shards)
    (folder / "rows").mkdir(parents=True)
    size = -(-len(rows) // shards)
    for shard in range(shards):
        lines = [json.dumps(row) for row in rows[shard * size : (shard + 1) * size]]
        (folder / "rows" / f"part-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    steps = {"order": ["quality", "pii", "near_duplicate"]}
    sources = [{"name": "s", "path": str(folder / "rows")}]
    made = curate(folder, "demonstration", sources, steps=steps, num_workers=workers, dedup=False)
    return {path.name: path.read_bytes() for path in made.output.iterdir()}
