"""What a stage says that was asked to stop: whether anything of it is kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from posttrain.stage.outcome import read_outcome
from posttrain.stage.stop import end_at_stop_signals


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (None, "it starts again from the beginning"),
        ("metrics.jsonl", "it starts again from the beginning"),
        ("samples.1.jsonl", "the same command goes on behind the rows that are done"),
        ("checkpoints/checkpoint-5", "the same command goes on from the last checkpoint"),
    ],
)
def test_it_says_where_the_same_command_goes_on(tmp_path: Path, kept: str | None, says: str) -> None:
    if kept is not None:
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).write_text("{}\n")
    pid = os.fork()
    if not pid:
        end_at_stop_signals(tmp_path / "outcome.json", tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    outcome = read_outcome(tmp_path / "outcome.json")
    assert outcome is not None and outcome.message == f"stopped on request; {says}"
