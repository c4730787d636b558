"""Evaluation scores the answer behind the reasoning, keeps all that was said, and reports the reasoning's length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saying_model import build_saying_model

from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem, write_dataset
from posttrain.evaluate import policy
from posttrain.evaluate.best_of_n import sampled_item
from posttrain.evaluate.config.policy import PolicyEvaluationConfig
from posttrain.evaluate.drift import score_response
from posttrain.evaluate.measure.drift_scores import distinct_n, read_responses, summarise_responses, write_responses
from posttrain.evaluate.measure.item_scores import read_items, summarise_items, write_items
from posttrain.evaluate.measure.selection import calibration_figures, curve_figures
from posttrain.evaluate.policy import judge_of, score_item
from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.sample.sampling import Sample
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

RIGHT = Sample([1, 2], [-1.0, -3.0], [], "stop", "4", 0.0, "2 + 2 is 5", 6, True, "<think>2 + 2 is 5</think>4")
WRONG = Sample([1, 2], [-1.0, -1.0], [], "stop", "5", 0.0, "2 + 2 is 4", 6, True, "<think>2 + 2 is 4</think>5")
OPEN = Sample([1, 2], [-0.1, -0.1], [], "stop", "", 0.0, "2 + 2 is 4", 6, False, "<think>2 + 2 is 4")
PLAIN = Sample([1], [-1.0], [], "stop", "4", 0.0)


def item(number: int = 0, **fields: Any) -> EvaluationItem:
    asked = [Message(role="user", content="2 + 2?")]
    values = {"reference": "4", "scorer": "number", "task": "sums", "language": "en", "split": "eval"} | fields
    return EvaluationItem(id=f"item/{number}", source="made", prompt=asked, **values)


def run(stage: Any, config: Any, inputs: dict[str, Path], output: Path) -> StageResult:
    output.mkdir()
    spec = StageSpec("s", "s", "test", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
    result: StageResult = stage(config, Context(spec, inputs, output, output, NullTracker(), main_process=True))
    return result


def test_the_answer_is_scored_and_the_whole_response_kept(tmp_path: Path) -> None:
    scored = [
        score_item(item(number), [sample], judge_of(None, []))
        for number, sample in enumerate((RIGHT, WRONG, OPEN, PLAIN))
    ]
    assert [(one.correct, one.ended, one.answer) for one in scored] == [
        (1.0, True, "4"),
        (0.0, True, "5"),
        (0.0, False, ""),
        (1.0, True, "4"),
    ]
    assert [one.response for one in scored] == [RIGHT.whole, WRONG.whole, OPEN.whole, "4"]
    write_items(tmp_path, scored)
    assert read_items(tmp_path) == scored
    figures = summarise_items(scored)["by_task"]["sums"]
    assert figures["reasoning"] == {"tokens": 4.5, "unanswered": 0.25}
    assert figures["ended"] == 0.75
    assert summarise_items(scored[3:])["overall"]["reasoning"] is None


def test_samples_vote_and_are_chosen_by_their_answers() -> None:
    made = sampled_item(item(), [0], [OPEN, RIGHT, WRONG, OPEN], [[0.0] * 4], EnsembleConfig())
    assert (made.answers, made.correct, made.ended) == (
        [None, "4", "5", None],
        [0, 1, 0, 0],
        [False, True, True, False],
    )
    curve = curve_figures([made, made], 50, 0.95, 0)
    assert curve["curves"]["correct"]["logprob"][0]["value"] == 0.25  # one of one
    assert curve["curves"]["correct"]["logprob"][-1]["value"] == 0.0  # the surest that answers is wrong
    assert curve["reasoning_by_task"] == {"sums": 6.0}
    assert json.dumps(calibration_figures([made, made], 0.05, 0.95, 0), allow_nan=False)


def test_drift_scores_the_answer_and_counts_its_words(tmp_path: Path) -> None:
    made = [score_response(item(), n, sample, (0.0, 0.0), 0.0) for n, sample in enumerate((RIGHT, OPEN, PLAIN))]
    assert [(one.correct, one.ended) for one in made] == [(1.0, True), (0.0, False), (1.0, True)]
    write_responses(tmp_path, made)
    assert read_responses(tmp_path) == made
    summary = summarise_responses(made, resamples=10)
    assert summary["reasoning_length"]["value"] == 4.0
    assert summary["distinct_1"] == distinct_n(["4", "", "4"], 1) == 0.5


def test_the_stage_scores_what_a_model_says(tmp_path: Path) -> None:
    model = build_saying_model(tmp_path, "<think> one two</think> three<|im_end|>", "<think>", "</think>")
    items = tmp_path / "items"
    items.mkdir()
    choices = {"reference": "three|two|one", "scorer": "choice"}
    write_dataset(items, [item(**choices)], EvaluationItem)
    result = run(
        policy.run, PolicyEvaluationConfig(max_new_tokens=12), {"model": model, "items": items}, tmp_path / "o"
    )
    assert result.metrics["exact_match"] == result.metrics["ended"] == 1.0
    assert result.metrics["reasoning_tokens"] == 2 and result.metrics["reasoning_unanswered"] == 0
    cut = run(policy.run, PolicyEvaluationConfig(max_new_tokens=3), {"model": model, "items": items}, tmp_path / "cut")
    assert (cut.metrics["exact_match"], cut.metrics["ended"], cut.metrics["reasoning_unanswered"]) == (0.0, 0.0, 1.0)
    (scored,) = read_items(tmp_path / "o")
    assert (scored.response, scored.answer) == ("<think> one two</think> three", "three")
