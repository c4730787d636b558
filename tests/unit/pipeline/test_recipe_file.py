"""A recipe of one's own that names no pipeline says what it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.pipeline.config.compose import compose_values
from posttrain.pipeline.config.recipe_file import taken_unasked

STAGES = "name: mine\nstages:\n  items: { run: data.curate }\n"
HEAD = "# @package _global_\n"
NO_PIPELINE = "defaults:\n  - override /pipeline: null\n  - _self_\n"


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        (HEAD + STAGES, [], True),
        (HEAD + STAGES, ["pipeline=sft"], False),
        (HEAD + NO_PIPELINE + STAGES, [], False),
        (HEAD + "name: mine\ntrain: { sft: { epochs: 2 } }\n", [], False),
        (STAGES, [], False),  # the configuration of a run, which is whole
    ],
)
def test_stages_that_nobody_asked_for_are_told(text: str, more: list[str], told: bool, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    words = [f"recipe={tmp_path / 'mine.yaml'}", *more]
    lines = taken_unasked(words)
    assert len(lines) == told
    if told:
        assert "sft_reward_dpo" in lines[0]
        assert {"items", "dpo"} <= {*compose_values(words)["stages"]}  # that pipeline's stages are there indeed
