"""A work order is written whole or not at all, moves with its store, and says what is wrong with it in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.stage.artifact import Parent
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed, StageSpec, Tracking


def spec_in(root: Path) -> StageSpec:
    return StageSpec(
        stage="sft",
        run="train.sft",
        pipeline="mine",
        key="0" * 64,
        code_digest="",
        config={"path": "/data/rows.jsonl"},
        inputs={"model": str(root / "artifacts" / "base-01")},
        parents={"model": Parent("model", "d", "base-01")},
        output=str(root / "artifacts" / "sft-01"),
        work=str(root / "work" / "sft-01"),
        outcome=str(root / "runs" / "mine" / "stages" / "sft" / "outcome.json"),
        seed=0,
        distributed=Distributed(),
        tracking=Tracking(),
    )


def place_in(root: Path) -> Path:
    return root / "runs" / "mine" / "stages" / "sft" / "spec.json"


def test_a_work_order_moves_with_its_store(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    spec_in(here).write(place_in(here))
    assert str(here) not in place_in(here).read_text()
    assert StageSpec.read(place_in(here)) == spec_in(here)
    shutil.move(here, there)
    assert StageSpec.read(place_in(there)) == spec_in(there)


def test_one_of_the_first_version_with_whole_paths_moves_too(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    spec_in(here).write(place_in(here))
    old = {name: str(here / path) for name, path in json.loads(place_in(here).read_text()).items() if name in PLACES}
    edit(place_in(here), **old, inputs={"model": str(here / "artifacts" / "base-01")})
    shutil.move(here, there)
    assert StageSpec.read(place_in(there)) == spec_in(there)


PLACES = ("output", "work", "outcome")


def edit(path: Path, **values: Any) -> None:
    raw = {**json.loads(path.read_text()), **values}
    raw.pop("version") if "version" not in values else None
    path.write_text(json.dumps(raw))


def test_one_outside_a_store_keeps_its_paths(tmp_path: Path) -> None:
    spec_in(tmp_path).write(tmp_path / "spec.json")
    assert StageSpec.read(tmp_path / "spec.json") == spec_in(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"inputs": 3, "output": "a", "work": "b"}'])
def test_a_torn_or_foreign_one_is_one_line_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UsageError, match=r"spec.json: .*delete it, and the same `posttrain run` writes it") as caught:
        StageSpec.read(tmp_path / "spec.json")
    assert "\n" not in str(caught.value)


def test_a_newer_one_is_not_to_be_deleted(tmp_path: Path) -> None:
    spec_in(tmp_path).write(tmp_path / "spec.json")
    edit(tmp_path / "spec.json", version=99)
    with pytest.raises(UsageError, match="version 99, but this posttrain knows 2; use a newer posttrain"):
        StageSpec.read(tmp_path / "spec.json")


def test_a_full_disk_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    spec_in(tmp_path).write(path)
    before = path.read_text()
    (tmp_path / f".spec.json.{os.getpid()}").symlink_to("/dev/full")  # where every write finds no space
    with pytest.raises(OSError, match="No space left"):
        spec_in(tmp_path / "other").write(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
