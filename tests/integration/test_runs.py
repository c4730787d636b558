"""What is said of runs afterwards: listed, compared, read, taken up again; and a run that goes on past a failure."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from posttrain.pipeline.cli import main

RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - override /tracking: none
  - _self_
name: two
launcher: {max_parallel: 1}
stages:
  bad: {run: data.curate, with: {record_type: demonstration, sources: [{name: bad, path: bad.jsonl}]}}
  good: {run: data.curate, with: {record_type: demonstration, sources: [{name: good, path: good.jsonl}]}}
  child:
    run: data.curate
    inputs: {items: bad}
    with: {record_type: demonstration, sources: [{name: c, path: good.jsonl}]}
"""
ROW = '{"prompt": "What is %d?", "completion": "A number."}\n'


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "two.yaml").write_text(RECIPE)
        (path / "good.jsonl").write_text("".join(ROW % number for number in range(20)))
        (path / "bad.jsonl").write_text('{"prompt": 1}\n')

    def posttrain(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(cwd or self.path), redirect_stdout(out), redirect_stderr(err):
            code = main(list(arguments))
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def states(self, *words: str) -> dict[str, str]:
        said = json.loads(self.posttrain("status", *words, "--json").stdout)
        return {stage["stage"]: stage["state"] for stage in said["stages"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("runs"))


def test_a_failure_ends_the_run_unless_it_is_to_keep_going(folder: Folder) -> None:
    stopped = folder.posttrain("run", "recipe=two.yaml", "run_name=first")
    assert stopped.returncode == 2, stopped.stderr
    assert folder.states("first") == {"bad": "failed", "good": "pending", "child": "pending"}
    went_on = folder.posttrain("run", "recipe=two.yaml", "run_name=second", "--keep-going")
    assert went_on.returncode == 2, went_on.stderr
    assert folder.states("second") == {"bad": "failed", "good": "done", "child": "pending"}
    assert folder.posttrain("status", "second", "--exit-code").returncode == 1


def test_the_log_of_the_failed_stage_is_the_one_that_is_shown(folder: Folder) -> None:
    shown = folder.posttrain("logs")
    assert "bad.jsonl:1" in shown.stdout
    assert shown.stderr.startswith("bad: ")
    assert folder.posttrain("logs", "god").stderr.startswith(
        "error: logs god: no stage of run second; did you mean 'good'?"
    )


def test_a_run_is_taken_up_from_anywhere_as_it_was_launched(folder: Folder, tmp_path: Path) -> None:
    (folder.path / "bad.jsonl").write_text("".join(ROW % number for number in range(100, 120)))
    resumed = folder.posttrain("resume", "second", "--root", str(folder.path / "outputs"), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{folder.path}$ posttrain run recipe=two.yaml run_name=second" in resumed.stderr
    assert set(folder.states("second").values()) <= {"done", "cached"}
    assert folder.posttrain("status", "second", "--exit-code").returncode == 0
    launches = (folder.path / "outputs" / "runs" / "second" / "launched.jsonl").read_text().splitlines()
    assert [json.loads(line)["keep_going"] for line in launches] == [True, True]


def test_runs_and_artifacts_are_listed_the_latest_first(folder: Folder) -> None:
    runs = json.loads(folder.posttrain("ls", "--json").stdout)
    assert [(run["run"], run["state"]) for run in runs] == [("second", "done"), ("first", "failed")]
    assert runs[0]["said"] == ["recipe=two.yaml", "run_name=second"]
    artifacts = json.loads(folder.posttrain("ls", "--artifacts", "--json").stdout)
    assert {line["artifact"].partition("-")[0] for line in artifacts} == {"bad", "good", "child"}
    assert all(line["runs"] == ["second"] or line["artifact"].startswith("good") for line in artifacts)
    assert "second" in folder.posttrain("ls").stdout


def test_two_runs_are_compared_by_knob_and_by_result(folder: Folder) -> None:
    third = folder.posttrain("run", "recipe=two.yaml", "run_name=third", "stages.good.with.eval_fraction=0.5")
    assert third.returncode == 0, third.stderr
    said = json.loads(folder.posttrain("diff", "second", "third", "--json").stdout)
    assert said["knobs"] == {"stages.good.config.eval_fraction": [0.05, 0.5]}
    assert list(said["results"]) == ["good"]
    why = json.loads(folder.posttrain("why", "good", "--json").stdout)
    assert [(one["name"], one["then"], one["now"]) for one in why[-1]["differences"]] == [
        ("eval_fraction", "0.05", "0.5")
    ]
