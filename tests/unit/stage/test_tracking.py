"""The metrics file of a stage holds each step once, also after training went back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from posttrain.stage.tracking import JsonlTracker, read_metrics


def test_going_back_forgets_what_came_after_the_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4):
        tracker.log({"loss": 1 / step}, step)
    tracker.rewind(2)
    tracker.log({"loss": 7.0}, 3)
    assert [(line["step"], line["loss"]) for line in read_metrics(tracker.path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log({"loss": 2.0}, 1)
    with tracker.path.open("a") as file:
        file.write('{"step": 2, "lo')
    tracker.rewind(2)
    tracker.log({"loss": 3.0}, 2)
    assert [line["loss"] for line in read_metrics(tracker.path)] == [2.0, 3.0]
