"""The lease: one holder at a time, named to the others, and gone with its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from posttrain.stage.errors import EXIT_REQUEUE, LeaseHeldError, UsageError
from posttrain.stage.lease import Lease, clear_unheld_work, holder

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


def dead_holder(path: Path) -> str:
    """Leave what a killed holder of this machine leaves in its lease file."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    said = {"pid": process.pid, "host": socket.gethostname(), "run": "dead", "since": "2026-01-01T00:00:00+0000"}
    path.write_text(json.dumps(said))
    return path.read_text()


def test_those_who_look_never_take_each_other_for_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    dead_holder(path)
    with ThreadPoolExecutor(4) as pool:
        seen = set(pool.map(lambda _: holder(path), range(4000)))
    assert seen == {None}
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as one who looks has it
        assert holder(path) is None


def test_a_holder_that_has_not_said_who_it_is_has_not_the_name_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    dead_holder(path)
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(path) == "a process that has just taken it"
        with pytest.raises(LeaseHeldError, match="by a process that has just taken it"), Lease(path, "mine"):
            pass


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pid": 1}', "null", '{"pid": "x", "host": "h", "run": "r", "since": "s"}']
)
def test_a_torn_or_foreign_lease_file_is_no_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lease"
    path.write_text(text)
    assert holder(path) is None
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(path) is not None


def test_whoever_waits_says_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lease"
    with held_elsewhere(path) as process, ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with Lease(path, "mine", wait_seconds=None):
                pass

        waiting = pool.submit(wait)
        said = ""
        while not said:
            said = capsys.readouterr().err
        assert f"waiting for process {process.pid}" in said
        assert process.stdin is not None
        process.stdin.close()
        waiting.result()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match="no locks"), Lease(tmp_path / "lease", "mine"):
        pass
    assert holder(tmp_path / "lease") is None


def test_nobody_holds_what_was_never_written(tmp_path: Path) -> None:
    assert holder(tmp_path / "lease") is None
    assert not (tmp_path / "lease").exists()


def test_what_a_stage_left_that_was_killed_after_its_commit_is_dropped_once_nobody_is_at_it(tmp_path: Path) -> None:
    work = tmp_path / "sft-0001"
    (work / "checkpoints" / "checkpoint-8").mkdir(parents=True)
    (work / "wandb").mkdir()
    (work / "metrics.jsonl").write_text("")
    with held_elsewhere(work / "lease"):
        clear_unheld_work(work, "mine")
        assert (work / "checkpoints" / "checkpoint-8").is_dir()
    clear_unheld_work(work, "mine")
    assert sorted(path.name for path in work.iterdir()) == ["lease", "wandb"]
