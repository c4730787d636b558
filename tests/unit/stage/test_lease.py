"""The lease: one holder at a time, named to the others, and gone with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from posttrain.stage.errors import EXIT_REQUEUE, LeaseHeldError
from posttrain.stage.lease import Lease, holder

HOLD = """
import sys
from pathlib import Path
from posttrain.stage.lease import Lease
with Lease(Path(sys.argv[1]), "other-run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lease_held_elsewhere_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "sft-0123" / "lease"
    with held_elsewhere(path) as process:
        who = holder(path)
        assert who is not None
        assert f"process {process.pid}" in who
        assert "run other-run" in who
        with (
            pytest.raises(LeaseHeldError, match=f"sft-0123 is being written by process {process.pid}") as caught,
            Lease(path, "mine"),
        ):
            pass
    assert caught.value.exit_code == EXIT_REQUEUE


def test_a_waiting_process_gets_the_lease_when_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with held_elsewhere(path) as process:
        assert process.stdin is not None
        process.stdin.close()
        with Lease(path, "mine", wait_seconds=60):
            who = holder(path)
    assert who is not None
    assert f"process {os.getpid()}" in who
    assert holder(path) is None


def test_a_killed_holder_leaves_no_lease_behind(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with held_elsewhere(path) as process:
        process.kill()
        process.wait()
        assert holder(path) is None
        with Lease(path, "mine"):
            pass


def test_nobody_holds_what_was_never_written(tmp_path: Path) -> None:
    assert holder(tmp_path / "lease") is None
    assert not (tmp_path / "lease").exists()
