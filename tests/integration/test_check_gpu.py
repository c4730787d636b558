"""The checks for a machine with a GPU run to their end on a CPU, and keep what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "check_gpu"


def run(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the folder as a user would try it."""
    command = [sys.executable, str(FOLDER / script), "--device", "cpu", "--tiny", "--folder", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_part_passes_is_kept_and_is_not_run_again(tmp_path: Path) -> None:
    done = run(tmp_path, "right.py", "--only", "sft.single", "--seconds", "280")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "right.json").read_text(encoding="utf-8"))
    assert row["figures"]["first loss"] == pytest.approx(row["figures"]["expected"], abs=1e-2)
    assert "| sft.single | passed |" in (tmp_path / "right.md").read_text(encoding="utf-8")
    lines = (tmp_path / "right.jsonl").read_text(encoding="utf-8")
    assert run(tmp_path, "right.py", "--only", "sft.single").returncode == 0
    assert (tmp_path / "right.jsonl").read_text(encoding="utf-8") == lines


def test_a_part_without_time_is_still_to_come(tmp_path: Path) -> None:
    done = run(tmp_path, "right.py", "--only", "sft.single", "--seconds", "1")
    assert done.returncode == 1
    assert "still to come: sft.single; run the same command again" in done.stdout
