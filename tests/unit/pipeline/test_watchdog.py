"""The watchdog over real processes that get on, stand still, are stopped, or hold the interpreter lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.pipeline.watch.watchdog import Watchdog
from posttrain.stage.heartbeat import VARIABLE, read_beats

TIMEOUT = 0.5
RANK = """
import ctypes, sys, time
from posttrain.stage import heartbeat

def get_on():
    for step in range(10**9):
        heartbeat.beat("training", step // 10, 10**8)
        time.sleep(0.01)

def work_alone():
    while True:
        heartbeat.pulse()
        time.sleep(0.01)

def stand_still():
    while True:
        time.sleep(1000)

def hold_the_interpreter():
    while True:
        ctypes.PyDLL(None).sleep(1000)  # unlike CDLL, it keeps the lock

def wait_outside():
    with heartbeat.waiting("downloading"):
        stand_still()

heartbeat.start(int(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    heartbeat.beat("training", 7, 40)
globals()[sys.argv[2]]()
"""


class Ranks:
    """Processes that play the ranks of a stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, behaviour: str, beats: int = 3) -> None:
        """Start the next rank; wait until it has given so many signs of life."""
        rank = len(self.processes)
        arguments = [sys.executable, "-c", RANK, str(rank), behaviour, str(beats)]
        self.processes.append(subprocess.Popen(arguments, env={**os.environ, VARIABLE: str(self.folder)}))
        until(lambda: any(said.rank == rank and said.beat >= beats for said in read_beats(self.folder)))

    def send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path / "attempt_1.ranks")
    yield ranks
    ranks.end()


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; fail when it never comes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.02)


def wait_for_hang(watchdog: Watchdog) -> str:
    found: list[str] = []
    until(lambda: found.append(watchdog.hung() or "") or found[-1])
    return found[-1]


def test_ranks_that_wait_for_one_at_work_do_not_hang(tmp_path: Path) -> None:
    scenes = [Ranks(tmp_path / behaviour) for behaviour in ("get_on", "work_alone", "wait_outside")]
    try:
        for scene in scenes:
            scene.start(scene.folder.name)
            scene.start("stand_still")
        watchdogs = [Watchdog(scene.folder, 2.5) for scene in scenes]
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            assert [watchdog.hung() for watchdog in watchdogs] == [None, None, None]
            time.sleep(0.02)
    finally:
        for scene in scenes:
            scene.end()


def test_a_stopped_rank_is_named_and_all_write_their_stacks(ranks: Ranks) -> None:
    ranks.start("stand_still")
    ranks.start("get_on")
    ranks.processes[1].send_signal(signal.SIGSTOP)
    watchdog = Watchdog(ranks.folder, TIMEOUT)
    hung = wait_for_hang(watchdog)
    assert hung.startswith(f"rank 1 (pid {ranks.processes[1].pid} on ")
    assert "stopped) stood still for 0.5 s (training, step " in hung
    assert str(ranks.folder) in hung
    first, second = (path.read_text() for path in watchdog.dump(ranks.send))
    assert "in stand_still" in first
    assert "in get_on" in second


def test_the_rank_that_is_behind_is_named(ranks: Ranks) -> None:
    for beats in (5, 4, 5):
        ranks.start("stand_still", beats)
    hung = wait_for_hang(Watchdog(ranks.folder, TIMEOUT))
    assert hung.startswith(f"rank 1 (pid {ranks.processes[1].pid} on ")
    assert "(training, step 7 of 40)" in hung


def test_ranks_at_the_same_point_are_all_named(ranks: Ranks) -> None:
    ranks.start("stand_still")
    ranks.start("hold_the_interpreter")
    assert wait_for_hang(Watchdog(ranks.folder, TIMEOUT)).startswith("all 2 ranks stood still for 0.5 s")


def test_a_rank_that_never_lets_go_of_the_interpreter_lock_writes_its_stacks(ranks: Ranks) -> None:
    ranks.start("hold_the_interpreter")
    watchdog = Watchdog(ranks.folder, TIMEOUT)
    assert wait_for_hang(watchdog).startswith(f"rank 0 (pid {ranks.processes[0].pid}")
    (stack,) = watchdog.dump(ranks.send)
    assert "hold_the_interpreter" in stack.read_text()


def test_ranks_that_never_start_hang_too(tmp_path: Path) -> None:
    assert (
        wait_for_hang(Watchdog(tmp_path / "none", TIMEOUT, start_seconds=0))
        == "no rank gave a sign of life within 0.5 s"
    )


def test_a_watcher_that_was_itself_suspended_blames_nobody(ranks: Ranks) -> None:
    ranks.start("stand_still")
    watchdog = Watchdog(ranks.folder, 1.0)
    time.sleep(0.3)  # past the least time between two looks, or it would have seen nothing yet
    assert watchdog.hung() is None
    time.sleep(1.5)
    assert watchdog.hung() is None
