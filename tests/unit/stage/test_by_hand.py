"""A stage started by hand touches nothing of the user's, and says what it did not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.stage.artifact import read_manifest, verify
from posttrain.stage.errors import EXIT_DONE, EXIT_USAGE

STAGE = """
from posttrain.stage.entry import StageResult, stage_main
from posttrain.stage.schema import external, schema, speed


@schema
class Config:
    rows: int = 3
    threads: int = speed(1)
    path: str | None = external()


def run(config, context):
    (context.output / "file").write_text("text")
    return StageResult()


stage_main(run, Config, kind="dataset")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stage_by_hand.py"
    path.write_text(STAGE, encoding="utf-8")
    return path


def start(script: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code and what stands on stderr of the stage with output ``mine``."""
    command = [sys.executable, str(script), f"output={script.parent / 'mine'}", "tracking.wandb=disabled", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["mine", "mine.work", ".mine.incomplete"])
def test_a_folder_of_the_users_is_refused_and_nothing_in_it_is_touched(script: Path, name: str) -> None:
    thesis = script.parent / name / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    code, said = start(script)
    assert code == EXIT_USAGE
    (line,) = said.splitlines()
    assert f"{thesis.parent}: " in line and "give another output" in line
    assert thesis.read_text() == "years of work"
    assert list(thesis.parent.iterdir()) == [thesis]


def test_a_file_of_the_users_is_refused(script: Path) -> None:
    (script.parent / "mine").write_text("years of work")
    assert start(script)[0] == EXIT_USAGE
    assert (script.parent / "mine").read_text() == "years of work"


def test_an_empty_folder_is_filled(script: Path) -> None:
    (script.parent / "mine").mkdir()
    assert start(script) == (EXIT_DONE, "")
    assert verify(script.parent / "mine") == []


def test_what_is_made_is_not_made_again_and_that_is_said(script: Path) -> None:
    assert start(script, "rows=3")[0] == EXIT_DONE
    created = (script.parent / "mine" / "manifest.json").stat().st_mtime_ns
    code, said = start(script, "rows=3", "threads=8")
    assert code == EXIT_DONE
    assert "mine: made already with these knobs; nothing to do" in said
    assert (script.parent / "mine" / "manifest.json").stat().st_mtime_ns == created


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [(["rows=4"], "config.rows: 3 there, 4 here"), (["seed=1"], "seed: 0 there, 1 here")],
)
def test_what_was_made_with_other_knobs_is_refused_with_the_difference(
    script: Path, arguments: list[str], difference: str
) -> None:
    assert start(script)[0] == EXIT_DONE
    code, said = start(script, *arguments)
    assert code == EXIT_USAGE
    assert f"made with other values ({difference})" in said and "give another output" in said
    assert read_manifest(script.parent / "mine").config["rows"] == 3


def test_what_was_made_from_other_contents_of_an_outside_file_is_refused(script: Path) -> None:
    outside = script.parent / "rows.txt"
    outside.write_text("one")
    assert start(script, f"path={outside}")[0] == EXIT_DONE
    outside.write_text("two")
    code, said = start(script, f"path={outside}")
    assert code == EXIT_USAGE
    assert "other contents" in said and "give another output" in said
