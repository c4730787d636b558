"""Workers: the same result in the same order, and none that outlives a stage that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from posttrain.data.rows.shelf import BATCH
from posttrain.data.steps.workers import Workers

KILLED = """
import os, time
from posttrain.data.rows.shelf import BATCH
from posttrain.data.steps.workers import Workers

def stay(rows):
    with open(f"{rows[0]}.pid", "x") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    list(Workers(2).each_batch(stay, range(2 * BATCH)))
"""


def doubled(rows: Sequence[int]) -> list[int]:
    return [2 * row for row in rows]


def test_batches_come_back_in_order_from_one_process() -> None:
    with Workers() as workers:
        made = list(workers.each_batch(doubled, range(2 * BATCH + 3)))
    assert [row for batch in made for row in batch] == list(range(0, 2 * (2 * BATCH + 3), 2))


def test_workers_end_with_a_stage_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    parent = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)
    pids = [int(text) for name in (0, BATCH) if (text := waited(tmp_path / f"{name}.pid"))]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(running(pid) for pid in pids):
        time.sleep(0.05)


def waited(path: Path) -> str:
    while not path.exists() or not path.read_text():
        time.sleep(0.05)
    return path.read_text()


def running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
