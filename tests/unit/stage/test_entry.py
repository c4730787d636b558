"""What the entry of a stage writes into the manifest, through a stage of a few lines in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.stage.artifact import Manifest, read_manifest, verify

STAGE = """
from posttrain.stage.entry import StageResult, stage_main
from posttrain.stage.schema import schema


@schema
class Config:
    license: str = "MIT"
    fail: bool = False


def run(config, context):
    (context.output / "file").write_text("text")
    if config.fail:
        raise ValueError("no")
    licenses, consulted = [config.license], ["items"]
    return StageResult({"rows": 3}, "3 rows", 7, licenses=licenses, consulted=consulted, facts={"found": True})


stage_main(run, Config, kind="dataset")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stage_of_three_rows.py"
    path.write_text(STAGE, encoding="utf-8")
    return path


def made(script: Path, name: str, *arguments: str, expect: int = 0) -> Path:
    output = script.with_name(name)
    command = [sys.executable, str(script), f"output={output}", "tracking.wandb=disabled", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return output


def manifest(artifact: Path) -> Manifest:
    assert verify(artifact) == []
    return read_manifest(artifact)


def test_an_artifact_has_the_licences_of_everything_it_came_from(script: Path) -> None:
    one = made(script, "one", "license=CC0-1.0")
    two = made(script, "two", f"inputs.data={one}", "license=CC-BY-4.0")
    other = made(script, "other", "license=MIT")
    joined = made(script, "joined", f"inputs.data={two}", f"inputs.model={other}", "license=MIT")
    beside = made(script, "beside", f"inputs.data={one}", f"inputs.items={two}")
    assert manifest(beside).licenses == ["CC0-1.0", "MIT"]
    assert {*manifest(beside).parents} == {"data", "items"}
    assert manifest(one).licenses == ["CC0-1.0"]
    assert manifest(two).licenses == ["CC-BY-4.0", "CC0-1.0"]
    assert manifest(joined).licenses == ["CC-BY-4.0", "CC0-1.0", "MIT"]


def test_the_manifest_says_what_the_stage_returned_and_came_from(script: Path) -> None:
    parent = made(script, "parent")
    found = manifest(made(script, "child", f"inputs.data={parent}", "seed=5"))
    assert (found.kind, found.metrics, found.headline, found.tokens) == ("dataset", {"rows": 3}, "3 rows", 7)
    assert (found.seed, found.config, found.facts) == (5, {"license": "MIT", "fail": False}, {"found": True})
    assert found.parents["data"].digest == manifest(parent).digest


def test_a_stage_that_fails_commits_nothing(script: Path) -> None:
    assert not made(script, "failed", "fail=true", expect=1).exists()


def test_a_stage_consumes_nothing_damaged(script: Path) -> None:
    parent = made(script, "parent")
    (parent / "file").write_text("text".upper())
    assert not made(script, "child", f"inputs.data={parent}", expect=2).exists()


def test_a_full_disk_is_one_line_and_no_traceback(script: Path) -> None:
    full = script.with_name("stage_on_a_full_disk.py")
    full.write_text(STAGE.replace('raise ValueError("no")', 'open("/dev/full", "w", buffering=1).write("text\\n")'))
    command = [sys.executable, str(full), f"output={script.with_name('one')}", "tracking.wandb=disabled", "fail=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {script.parent}") and "no space left; make room there" in line
