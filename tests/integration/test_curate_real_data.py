"""Curation of real published files, run as the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
real_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs the real data in {DATA}")


def command(
    folder: Path, record_type: str, sources: list[dict[str, Any]], **knobs: Any
) -> subprocess.CompletedProcess[str]:
    arguments = [f"output={folder / 'out'}", f"record_type={record_type}", f"sources={json.dumps(sources)}"]
    arguments += [f"{name}={value}" for name, value in knobs.items()]
    environment = {**os.environ, **OFFLINE, "HF_HOME": str(folder / "hf")}
    line = [sys.executable, "-m", "posttrain.data.curate", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def curate(folder: Path, record_type: str, sources: list[dict[str, Any]], **knobs: Any) -> tuple[list[Any], Any]:
    """Return the rows of both splits, and the accounting."""
    done = command(folder, record_type, sources, **knobs)
    assert done.returncode == 0, done.stderr
    rows = [
        row for split in ("train", "eval") for row in pq.read_table(folder / "out" / f"{split}.parquet").to_pylist()
    ]
    return rows, json.loads((folder / "out" / "accounting.json").read_text())


def real(name: str, file: str, **knobs: Any) -> dict[str, Any]:
    return {"name": name, "path": str(DATA / file), **knobs}


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


@real_data
def test_demonstrations_of_gsm8k_and_oasst1(tmp_path: Path) -> None:
    sources = [real("gsm8k", "gsm8k/train.jsonl", license="MIT"), real("oasst1", "oasst1/en-validation.jsonl")]
    rows, counts = curate(tmp_path, "demonstration", sources)
    assert counts["by_source"]["gsm8k"]["rows_in"] == counts["by_source"]["gsm8k"]["kept"] == 7473
    oasst = counts["by_source"]["oasst1"]
    dropped = {"deleted": 28, "failed_review": 28, "no_root": 2, "duplicate": 1}
    assert (oasst["rows_in"], oasst["kept"], oasst["dropped"]) == (1243, 1184, dropped)
    assert len({row["id"] for row in rows}) == len(rows) == 7473 + 1184
    assert {row["language"] for row in rows if row["source"] == "oasst1"} == {"en"}
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["user", "assistant"] * (len(row["prompt"]) // 2) + [
            "user"
        ]
        assert [message["role"] for message in row["completion"]] == ["assistant"]
    sides: dict[str, set[str]] = {"train": set(), "eval": set()}
    for row in rows:
        sides[row["split"]].add("\n".join(" ".join(m["content"].split()).casefold() for m in row["prompt"]))
    assert not sides["train"] & sides["eval"]


@real_data
def test_comparisons_of_four_sources(tmp_path: Path) -> None:
    sources = [
        real("ifeval", "ifeval_responses/multirank.jsonl.gz"),
        real("oasst1_en", "oasst1/derived_multirank_en.jsonl"),
        real("oasst1_fi", "oasst1/derived_multirank_fi.jsonl"),
        real("hh", "hh_rlhf/harmless_test.jsonl.gz", language="en"),
    ]
    rows, counts = curate(tmp_path, "comparison", sources)
    found = {
        name: (source["rows_in"], source["kept"], source["dropped"]) for name, source in counts["by_source"].items()
    }
    assert found == {
        "ifeval": (1063, 979, {"all_tied": 84}),
        "oasst1_en": (416, 416, {}),
        "oasst1_fi": (416, 416, {}),
        "hh": (2312, 2299, {"turns_do_not_alternate": 9, "empty_response": 4}),
    }
    by_language = Counter(row["language"] for row in rows if row["source"] == "ifeval")
    assert set(by_language) == {"en", "fr", "ja", "es"}
    assert all(min(row["ranks"]) == 1 and len(set(texts(row["responses"]))) == len(row["ranks"]) for row in rows)
    first = next(row for row in rows if row["source"] == "oasst1_fi")
    assert first["language"] == "fi"
    assert first["ranks"] == sorted(first["ranks"])


@real_data
def test_the_tree_gives_the_groups_that_were_derived_from_it(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "derived").mkdir()
    tree, _ = curate(tmp_path / "tree", "comparison", [real("o", "oasst1/en-validation.jsonl")])
    derived, _ = curate(tmp_path / "derived", "comparison", [real("o", "oasst1/derived_multirank_en.jsonl")])

    def groups(rows: list[Any]) -> set[tuple[Any, ...]]:
        return {
            (
                *texts(row["prompt"]),
                *sorted(zip(row["ranks"], texts(row["responses"]), strict=True)),
                row["split"],
            )
            for row in rows
        }

    assert groups(tree) == groups(derived)


@real_data
def test_evaluation_items_of_gsm8k(tmp_path: Path) -> None:
    rows, counts = curate(tmp_path, "evaluation", [real("gsm8k", "gsm8k/test.jsonl", limit=200)])
    assert counts["by_source"]["gsm8k"] == {"rows_in": 200, "kept": 200, "dropped": {}, "train": 0, "eval": 200}
    assert {row["scorer"] for row in rows} == {"number"}
    assert rows[0]["reference"] == "18"
    assert rows[0]["ideal"].endswith("#### 18")


@real_data
def test_a_mixture_of_tasks_with_duplicates(tmp_path: Path) -> None:
    _, counts = curate(tmp_path, "demonstration", [real("t0", "t0_p3/sample_10k.jsonl.gz")])
    assert counts["by_source"]["t0"]["dropped"] == {"duplicate": 110}


@real_data
@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "truthfulqa/TruthfulQA.csv",
            ":2: columns Best Answer, Category, Correct Answers, Incorrect Answers, Question",
        ),
        ("pandalm/testset-v1.json", "[0]: columns annotator1, annotator2, annotator3, cmp_key,"),
        ("gsm8k/absent.jsonl", ": no such file; mend the path"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(tmp_path: Path, file: str, message: str) -> None:
    done = command(tmp_path, "demonstration", [real("bad", file)])
    errors = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {DATA / file}{message}")


def test_a_hugging_face_dataset_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    lines = [json.dumps({"question": f"{n}?", "answer": f"{n}!"}) for n in range(5)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    rows, counts = curate(
        tmp_path, "demonstration", [{"name": "hub", "dataset": str(folder), "limit": 4}], eval_fraction=0
    )
    assert counts["rows_in"] == 4
    assert [row["completion"][0]["content"] for row in rows] == ["0!", "1!", "2!", "3!"]


def test_a_hugging_face_dataset_without_network_is_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "demonstration", [{"name": "hub", "dataset": "nobody/nothing-of-this-name"}])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: dataset 'nobody/nothing-of-this-name': cannot be loaded (")
    assert "Traceback" not in done.stderr
