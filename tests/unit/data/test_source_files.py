"""A source's path: one file, several, a folder or a pattern, read as one in the order of the names."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_data import Curated, curate, qa

from posttrain.stage.errors import UsageError


def write(path: Path, *questions: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(qa(question)) + "\n" for question in questions), encoding="utf-8")
    return path


def read(folder: Path, path: Any, **knobs: Any) -> Curated:
    return curate(folder, "demonstration", [{"name": "s", "path": path}], eval_fraction=0, **knobs)


def asked(made: Curated) -> list[str]:
    return [record.prompt[0].content for record in made.train]


def test_shards_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a/2", "a/1"):
        write(tmp_path / "data" / f"{name}.jsonl", f"{name}?")
    for name in ("README.md", ".hidden.jsonl", "_progress.jsonl", ".cache/old.jsonl"):
        write(tmp_path / "data" / name, "not this?")
    assert asked(read(tmp_path, str(tmp_path / "data"))) == ["a/1?", "a/2?", "b?"]


def test_shards_of_parquet_are_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00001-of-2", "train-00000-of-2"):
        pq.write_table(pa.Table.from_pylist([qa(f"{name}?")]), tmp_path / "data" / f"{name}.parquet")
    assert asked(read(tmp_path, str(tmp_path / "data"))) == ["train-00000-of-2?", "train-00001-of-2?"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*.jsonl", ["a?", "b?"]), ("[b]*", ["b?"]), ("**/?.jsonl", ["a?", "b?", "sub/c?"]), ("s*/c.jsonl", ["sub/c?"])],
)
def test_a_pattern_names_the_files_that_match(tmp_path: Path, pattern: str, found: list[str]) -> None:
    for name in ("b", "a", "sub/c", ".d"):
        write(tmp_path / "data" / f"{name}.jsonl", f"{name}?")
    assert asked(read(tmp_path, str(tmp_path / "data" / pattern))) == found


def test_a_list_is_read_in_its_own_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, f"{name}?") for name in ("b.jsonl", "sub/a.jsonl")]
    assert asked(read(tmp_path, [str(path) for path in paths])) == ["b.jsonl?", "sub/a.jsonl?"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a1.jsonl", "not this?")
    assert asked(read(tmp_path, str(write(tmp_path / "a[1].jsonl", "this?")))) == ["this?"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_any_letters_may_stand_in_a_path_in_either_spelling(tmp_path: Path, form: Any) -> None:
    write(
        tmp_path / unicodedata.normalize("NFC" if form == "NFD" else "NFD", "donn\u00e9es \U0001f600 'x'.jsonl"), "a?"
    )
    path = tmp_path / unicodedata.normalize(form, "donn\u00e9es \U0001f600 'x'.jsonl")
    assert asked(read(tmp_path, str(path))) == ["a?"]


def test_the_home_folder_is_known_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data" / "a.jsonl", "a?")
    for number, path in enumerate(("~/data/a.jsonl", "~/data", "~/data/*.jsonl", ["~/data/a.jsonl"])):
        assert asked(read(tmp_path, path)) == ["a?"]
        (tmp_path / "out").rename(tmp_path / f"out{number}")


def test_a_bad_row_is_placed_in_its_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "data" / f"{name}.jsonl", f"{name}?")
    (tmp_path / "data" / "b.jsonl").write_text(json.dumps(qa("c?")) + "\n{\n")
    for path in ("data", "data/*.jsonl", ["data/a.jsonl", "data/b.jsonl"]):
        absolute = str(tmp_path / path) if isinstance(path, str) else [str(tmp_path / name) for name in path]
        with pytest.raises(UsageError) as caught:
            read(tmp_path, absolute)
        assert str(caught.value).startswith(f"{tmp_path}/data/b.jsonl:2: not JSON (")
        (tmp_path / "out").rmdir()
    made = read(tmp_path, str(tmp_path / "data"), on_bad_row="quarantine")
    (row,) = (json.loads(line) for line in (made.output / "quarantine.jsonl").read_text().splitlines())
    assert row["place"] == "b.jsonl:2"


def test_an_id_that_stands_in_two_shards_names_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(qa(f"{name}?", id=1)) + "\n")
    with pytest.raises(UsageError, match=rf"^{tmp_path}/b.jsonl:1: id '1': already used at a.jsonl:1 for another row"):
        read(tmp_path, str(tmp_path / "*.jsonl"))
    (tmp_path / "out").rmdir()
    made = curate(tmp_path, "demonstration", [{"name": "s", "path": str(tmp_path / "*.jsonl"), "ids": "ignore"}])
    ids = [record.id for record in [*made.train, *made.eval]]
    assert len({*ids}) == 2 and all(len(name) == len("s/") + 24 for name in ids)


@pytest.mark.parametrize(
    ("names", "path", "fault"),
    [
        (["a.jsonl", "b.csv"], "data", "{}: files of several formats (.csv, .jsonl); name those to read, such as"),
        (["a.jsonl", "b.json"], "data/*", "{}: files of several formats (.json, .jsonl); name those to read, such as"),
        (["README.md"], "data", "{}: the folder holds no file that can be read; mend the path"),
        (["a.jsonl"], "data/*.parquet", "{}: no file matches; mend the pattern"),
        (
            ["train-0.jsonl", "test-0.jsonl"],
            "data",
            "{}: the folder holds files to train on and to hold out (test-0.jso",
        ),
        (
            ["train/0.jsonl", "validation/0.jsonl"],
            "data",
            "{}: the folder holds files to train on and to hold out (val",
        ),
        (["a.jsonl"], "data/b.jsonl", "{}: no such file; mend the path"),
    ],
)
def test_paths_that_name_nothing_to_read_as_one_are_refused(
    tmp_path: Path, names: list[str], path: str, fault: str
) -> None:
    for name in names:
        write(tmp_path / "data" / name, f"{name}?")
    with pytest.raises(UsageError) as caught:
        read(tmp_path, str(tmp_path / path))
    assert str(caught.value).startswith(fault.format(tmp_path / path))


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", "a?"))
    with pytest.raises(UsageError, match=r"a.jsonl: named twice; name it once"):
        read(tmp_path, [path, str(tmp_path / "*.jsonl")])
