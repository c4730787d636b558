"""Cancelling reaches the launcher of this machine too, whatever was ever submitted of the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.pipeline.cli import main
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.errors import EXIT_DONE, EXIT_USAGE

LAUNCH = """
import sys
from pathlib import Path
from posttrain.stage.lease import Lease
with Lease(Path(sys.argv[1]), "mine"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "outputs", "mine")
    run.jobs.parent.mkdir(parents=True)
    run.jobs.write_text(json.dumps({"sft": "12"}))
    (run.path / "config.yaml").write_text("name: mine\n")
    return run


@pytest.mark.parametrize("slurm", [True, False])
def test_a_local_launcher_of_a_run_that_was_once_submitted_is_stopped(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    if slurm:  # one whose queue is empty
        (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")
        (tmp_path / "bin" / "squeue").chmod(0o755)
    command = [sys.executable, "-c", LAUNCH, str(run.lease)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == "held\n"
        code = main(["cancel", "mine", "--root", str(run.root)])
        assert launcher.stdin is not None
        launcher.stdin.close()
        assert launcher.wait() == -signal.SIGTERM
    assert code == (EXIT_DONE if slurm else EXIT_USAGE)  # without Slurm, its jobs could not be asked for
