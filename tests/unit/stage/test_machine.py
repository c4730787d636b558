"""What is asked of the system is answered, where a call of Linux is missing too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from posttrain.plan.cards import card_named
from posttrain.stage import machine


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "POSTTRAIN_TEST": "one"}
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_cores_are_those_bound_to_or_all_where_nothing_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert machine.usable_cores() == 8
    assert card_named("cpu", "hardware").watts == 8 * 15.0


def test_a_stopped_process_is_told_from_one_that_runs_or_is_gone(sleeping: subprocess.Popen[bytes]) -> None:
    assert not machine.is_stopped(sleeping.pid)
    sleeping.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while not machine.is_stopped(sleeping.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sleeping.kill()
    sleeping.wait()
    assert not machine.is_stopped(sleeping.pid)


def test_a_process_is_ours_by_the_variable_that_it_began_with(sleeping: subprocess.Popen[bytes]) -> None:
    assert machine.has_variable(sleeping.pid, "POSTTRAIN_TEST", "one")
    assert not machine.has_variable(sleeping.pid, "POSTTRAIN_TEST", "two")
    sleeping.kill()
    sleeping.wait()
    assert not machine.has_variable(sleeping.pid, "POSTTRAIN_TEST", "one")
