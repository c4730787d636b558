"""`posttrain accept`: an artifact of older code stands for the present code, by a record that cannot be edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cloned_package import ClonedPackage

RECIPE = (
    "# @package _global_\ndefaults:\n  - override /pipeline: null\n  - _self_\nname: two\nstages:\n"
    "  demo: {run: data.demo, with: {num_texts: 3, num_demonstrations: 15, num_comparisons: 15,"
    " num_gold_comparisons: 15, num_evaluation_items: 15}}\n"
    "  rows: {run: data.curate, inputs: {sources: demo},"
    " with: {record_type: demonstration, sources: [{name: a, file: demonstrations.jsonl}]}}\n"
)
RUN = ("recipe=two", "--config-dir", "own")
BECAUSE = ("--because", "only a name changed")


@pytest.fixture
def clone(tmp_path: Path) -> ClonedPackage:
    made = ClonedPackage(tmp_path)
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "two.yaml").write_text(RECIPE)
    done = made.posttrain("run", *RUN)
    assert done.returncode == 0, done.stderr
    with (made.package / "data" / "demo.py").open("a") as file:
        file.write("\nEDITED = 1\n")
    assert made.states(*RUN) == {"demo": "would", "rows": "waits"}
    return made


def records(clone: ClonedPackage) -> list[Path]:
    return list((clone.root / "outputs" / "records").rglob("*.json"))


def test_an_accepted_stage_and_what_follows_are_not_run_again(clone: ClonedPackage) -> None:
    before = {path: path.read_bytes() for path in (clone.root / "outputs" / "artifacts").rglob("*") if path.is_file()}
    done = clone.posttrain("accept", "demo", *BECAUSE)
    assert done.returncode == 0, done.stderr
    assert clone.states(*RUN) == {"demo": "cached", "rows": "cached"}
    assert clone.posttrain("run", *RUN).returncode == 0
    assert clone.posttrain("verify").stdout == "2 artifacts: every byte as recorded\n"
    after = {path: path.read_bytes() for path in (clone.root / "outputs" / "artifacts").rglob("*") if path.is_file()}
    assert after == before, "an artifact was touched"
    (record,) = records(clone)
    said = json.loads(record.read_text())
    assert (said["what"], said["because"]) == ("accept", "only a name changed")
    assert "only a name changed" in clone.posttrain("show", "demo").stdout
    again = clone.posttrain("accept", "demo", *BECAUSE)
    assert "nothing to accept" in again.stdout


def test_a_record_that_was_edited_is_believed_by_nobody(clone: ClonedPackage) -> None:
    clone.posttrain("accept", "demo", *BECAUSE)
    (record,) = records(clone)
    record.write_text(record.read_text().replace("only a name", "nothing at all"))
    done = clone.posttrain("verify")
    assert done.returncode == 1
    assert f"{record.name}: not as it was written" in done.stderr
    refused = clone.posttrain("run", *RUN, "--dry-run")
    assert refused.returncode == 2
    assert "not as it was written" in refused.stderr


def test_what_differs_in_more_than_its_code_cannot_be_accepted(clone: ClonedPackage) -> None:
    unknown = clone.posttrain("accept", "dmeo", *BECAUSE)
    assert (unknown.returncode, unknown.stderr.count("did you mean 'demo'")) == (2, 1)
    below = clone.posttrain("accept", "rows", *BECAUSE)
    assert below.returncode == 2
    assert "its input demo is not made by the present code; accept demo first, or run it" in below.stderr
    config = next((clone.root / "outputs" / "runs").glob("two-*")) / "config.yaml"
    config.write_text(config.read_text().replace("num_texts: 3", "num_texts: 4"))
    other = clone.posttrain("accept", "demo", *BECAUSE)
    assert other.returncode == 2
    assert "differs in its code alone" in other.stderr
    assert not records(clone)
