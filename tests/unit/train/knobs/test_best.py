"""Which evaluation was the best, and when to stop looking for a better one."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.train.checkpoints.protocol import (
    checkpoint_path,
    checkpoint_steps,
    commit_checkpoint,
    rotate_checkpoints,
    staging_directory,
)
from posttrain.train.engine.best import Best, best_checkpoint, require_held_out


def test_a_low_loss_and_a_high_accuracy_are_better() -> None:
    by_loss, by_accuracy = Best("loss"), Best("accuracy")
    values = [(1, 0.9, 0.5), (2, 0.7, 0.5), (3, 0.8, 0.6)]
    found = [
        (by_loss.note({"eval_loss": loss}, step), by_accuracy.note({"eval_accuracy": accuracy}, step))
        for step, loss, accuracy in values
    ]
    assert found == [(True, True), (True, False), (False, True)]
    assert (by_loss.step, by_loss.value, by_loss.worse) == (2, 0.7, 1)
    assert (by_accuracy.step, by_accuracy.value, by_accuracy.worse) == (3, 0.6, 0)


def test_patience_counts_evaluations_in_a_row_and_goes_on_after_a_stop() -> None:
    best = Best("loss", patience=2)
    for step, loss in ((1, 1.0), (2, 2.0), (3, 0.5), (4, 0.6)):
        best.note({"eval_loss": loss}, step)
    assert not best.exhausted
    resumed = Best("loss", patience=2)
    resumed.take_up(best.state())
    assert not resumed.note({"eval_loss": 0.4}, 4)  # a step counts once
    assert not resumed.note({"eval_loss": 0.5}, 5)  # as good is not better
    assert resumed.exhausted and resumed.step == 3


def test_without_a_metric_nothing_is_chosen() -> None:
    best = Best()
    assert not best.note({}, 1)
    assert (best.step, best.exhausted) == (None, False)


def test_the_best_checkpoint_outlives_newer_ones_and_has_to_be_whole(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        staged = checkpoint_path(staging_directory(tmp_path), step)
        staged.mkdir(parents=True)
        (staged / "weights").write_text(str(step))
        commit_checkpoint(tmp_path, step, {})
        rotate_checkpoints(tmp_path, 2, spared=2)
    assert checkpoint_steps(tmp_path) == [8, 6, 2]
    assert (best_checkpoint(tmp_path, 2) / "weights").read_text() == "2"
    (checkpoint_path(tmp_path, 2) / "weights").write_text("3")
    with pytest.raises(PosttrainError, match="the best weights, of step 2, are lost"):
        best_checkpoint(tmp_path, 2)


def test_rows_to_choose_by_have_to_be_there() -> None:
    require_held_out(None, 0, "train.sft")
    with pytest.raises(UsageError, match=r"train.sft.best.metric=loss: the data has no held-out rows"):
        require_held_out("loss", 0, "train.sft")
