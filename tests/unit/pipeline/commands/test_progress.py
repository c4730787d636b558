"""How far a running stage is, in words and on a terminal: step of steps, figures, rate, and how long it still takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.pipeline.runs.progress import how_far
from posttrain.pipeline.watch import progress
from posttrain.pipeline.watch.progress import Display
from posttrain.stage.heartbeat import RankBeat


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def beats(folder: Path, **said: object) -> Path:
    folder.mkdir()
    rank = {"rank": 0, "pid": 1, "host": "here", "beat": 1, "pulse": 0, "step": None, "last_step": None, "phase": "x"}
    (folder / "rank_0.json").write_text(json.dumps({**rank, **said}))
    return folder


def test_all_is_said_once_two_steps_are_logged(tmp_path: Path) -> None:
    metrics = write(
        tmp_path / "m", {"step": 40, "loss": 5.0, "seconds": 20.0}, {"step": 50, "loss": 4.25, "seconds": 25.0}
    )
    at = how_far(metrics, [RankBeat(0, 1, "here", last_step=400)])
    assert at.words() == "step 50 of 400 · loss 4.25 · 2 steps/s · 2 min 55 s left"


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    one = write(tmp_path / "m", {"step": 10, "loss": 5.0, "seconds": 9.0})
    assert how_far(one, []).words() == "step 10 · loss 5"
    assert how_far(tmp_path / "none", [RankBeat(0, 1, "here", phase="sampling")]).words() == "sampling"
    assert how_far(tmp_path / "none", []).words() == ""


def test_the_rate_is_that_of_the_present_attempt(tmp_path: Path) -> None:
    rows = ({"step": step, "seconds": seconds} for step, seconds in ((10, 900.0), (11, 3.0), (13, 9.0)))
    assert how_far(write(tmp_path / "m", *rows), []).words() == "step 13 · 3 s/step"


def test_a_terminal_shows_a_bar_for_each_running_stage_and_the_whole_graph(tmp_path: Path) -> None:
    metrics = write(
        tmp_path / "m", {"step": 40, "loss": 5.0, "seconds": 20.0}, {"step": 50, "loss": 4.25, "seconds": 25.0}
    )
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=140, color_system=None)) as display:
        display.started("sft", "started")
        display.whole(3, 14)
        display.update("sft", metrics, beats(tmp_path / "ranks", last_step=400))
    shown = out.getvalue()
    assert "50/400" in shown and "2 min 55 s left" in shown and "loss 4.25" in shown
    assert "all stages" in shown and "3/14" in shown


def test_plain_lines_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.0)
    metrics = write(tmp_path / "m", {"step": 1, "seconds": 1.0}, {"step": 2, "loss": 1.0, "seconds": 2.0})
    out = io.StringIO()
    with Display(Console(file=out, width=140)) as display:
        display.started("sft", "started")
        display.update("sft", metrics, beats(tmp_path / "ranks", last_step=4))
        display.ended("sft", "done")
    assert "running step 2 of 4 · loss 1 · 1 s/step · 2.0 s left" in out.getvalue()
