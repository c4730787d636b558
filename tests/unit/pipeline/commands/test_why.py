"""`posttrain why`: ten planted changes, each named by the part of the key that it changed, and by nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloned_package import ClonedPackage

from posttrain.pipeline.cli import main

DATA = '{"prompt": "1 + 1?", "completion": "2"}\n'


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> ClonedPackage:
    """A store in which every stage of a pipeline on a user's file is made."""
    made = ClonedPackage(tmp_path_factory.mktemp("clone"))
    (made.root / "rows.jsonl").write_text(DATA)
    (made.root / "items.jsonl").write_text('{"prompt": "2 + 2?", "reference": "4"}\n')
    (made.root / "model").mkdir()
    (made.root / "model" / "config.json").write_text("{}")
    made.commit_all(*GIVEN)
    return made


GIVEN = ["recipe=own/sft", "paths.model=model", "paths.demonstrations=rows.jsonl", "paths.items=items.jsonl"]


@pytest.fixture
def here(clone: ClonedPackage, monkeypatch: pytest.MonkeyPatch) -> ClonedPackage:
    """The store as the present folder; the code here is that of the clone."""
    monkeypatch.chdir(clone.root)
    return clone


def why(capsys: pytest.CaptureFixture[str], stage: str, *more: str) -> list[dict[str, Any]]:
    assert main(["why", stage, *GIVEN, *more, "--json"]) == 0
    reasons: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return reasons


def said(reason: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(one["part"], one["name"], one["then"], one["now"]) for one in reason["differences"]]


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("sft", ["train.sft.epochs=2"], [("knob", "epochs", "3.0", "2.0")]),
        ("sft", ["stages.sft.with.loss=dft"], [("knob", "loss", '"nll"', '"dft"')]),
        (
            "sft",
            ["adapter=lora"],
            [("knob", "optimizer.learning_rate", "2e-05", "0.0002"), ("knob", "adapter.kind", '"full"', '"lora"')],
        ),
        ("sft", ["stages.sft.seed=4"], [("seed", "seed", "0", "4")]),
        ("demonstrations", ["stages.demonstrations.with.dedup=false"], [("knob", "dedup", "true", "false")]),
        (
            "demonstrations",
            ["columns.demonstrations={prompt: q}"],
            [("knob", "sources.0.columns.prompt", "null", '"q"')],
        ),
        ("sft", ["train.sft.micro_batch_size=1"], []),
    ],
)
def test_a_changed_knob_is_named_with_both_values(
    here: ClonedPackage,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    changes: list[str],
    expected: list[tuple[str, str, str, str]],
) -> None:
    (reason,) = why(capsys, stage, *changes)
    assert sorted(said(reason)) == sorted(expected)
    assert reason["state"] == ("would run" if expected else "made")


def test_a_changed_file_is_named_by_the_knob_that_names_it(
    here: ClonedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here.root / "rows.jsonl"
    path.write_text(DATA * 2)
    try:
        first, *_ = why(capsys, "sft")
    finally:
        path.write_text(DATA)
    assert (first["stage"], first["state"]) == ("demonstrations", "would run")
    assert [(part, name) for part, name, _, _ in said(first)] == [("file", "sources.0.path")]


def test_a_stage_after_a_changed_one_says_which_input_and_that_one_why(
    here: ClonedPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = why(capsys, "evaluate_sft", "train.sft.epochs=2")
    assert [(one["stage"], one["state"]) for one in reasons] == [
        ("sft", "would run"),
        ("evaluate_sft", "would run after what it needs"),
    ]
    assert said(reasons[1]) == [("input", "model", "", "sft, which would be made anew")]


def test_changed_code_is_named_by_its_module(clone: ClonedPackage) -> None:
    path = clone.package / "train" / "sft.py"
    before = path.read_text(encoding="utf-8")
    clone.edit("train/sft.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nE = 1\n")
    try:
        done = clone.posttrain("why", "sft", *GIVEN, "--json")
    finally:
        path.write_text(before, encoding="utf-8")
    (reason,) = json.loads(done.stdout)
    assert [(part, name) for part, name, _, _ in said(reason)] == [("code", "posttrain.train.sft")]


def test_an_unknown_stage_is_met_with_the_nearest(clone: ClonedPackage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "sftt", "recipe=smoke", "--root", str(clone.root / "outputs")]) == 2
    assert "why sftt: no such stage; did you mean 'sft'?" in capsys.readouterr().err
