"""A model of ours as judge: no server is asked, each question once, and what does not fit is said beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saying_model import build_saying_model

from posttrain.sample.backends.judge import read_place
from posttrain.sample.backends.local_judge import LocalJudge
from posttrain.sample.config.judge import JudgeModelConfig
from posttrain.stage.errors import UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A judge who says the same to everything."""
    return build_saying_model(tmp_path, "[[A]]", "[[A]]")


def judge(model: Path, work: Path, max_tokens: int) -> LocalJudge:
    return LocalJudge(model, JudgeModelConfig(model="mine", max_tokens=max_tokens), work, "evaluate.judge.judge")


def test_replies_stand_beside_their_questions_and_are_remembered(model: Path, tmp_path: Path) -> None:
    questions = ["two cats", "one dog", "two cats"]
    texts, calls = judge(model, tmp_path, 2).ask(questions)
    assert [read_place(text) for text in texts] == ["first"] * 3 and calls == 2
    assert judge(model, tmp_path, 2).ask(questions).texts == texts
    assert (tmp_path / "judge.sqlite").is_file()


def test_a_question_without_room_for_a_reply_is_refused(model: Path, tmp_path: Path) -> None:
    context = json.loads((model / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    with pytest.raises(
        UsageError, match=rf"evaluate\.judge\.judge\.max_tokens={context}: with a question of \d+ tokens"
    ):
        judge(model, tmp_path, context).ask(["two cats"])


def test_rubrics_are_by_language(model: Path, tmp_path: Path) -> None:
    config = JudgeModelConfig(model="mine", rubrics={"de": "Kurz.", "default": "Short."})
    local = LocalJudge(model, config, tmp_path, "where")
    assert (local.rubric("de-AT"), local.rubric("fr")) == ("Kurz.", "Short.")
