"""Gates: what is planted is found for its reason, and a model that did not change passes."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.evaluate.measure.gating import (
    FELL,
    HELD,
    ROSE,
    UNCLEAR,
    Finding,
    Metric,
    guarded_metrics,
    judge_guarded,
    judge_target,
    planned_power,
    worst_items,
)
from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.measure.sourced import sourced_figures

TASKS, LANGUAGES, QUESTIONS = ("sums", "json", "labels", "answers"), ("en", "es", "de"), 60


def scored(rng: np.random.Generator, shares: dict[str, float] | None = None) -> list[ScoredItem]:
    """Return answers to 60 questions of each task in three languages, which mostly win and lose together."""
    found = []
    for task in TASKS:
        right = (shares or {}).get(task, 0.8)
        for question in range(QUESTIONS):
            hard = np.random.default_rng([question, len(task)]).beta(4 * right, 4 * (1 - right))
            for language in LANGUAGES:
                correct = float(rng.random() < hard)
                name = f"{task}/{question}/{language}"
                found.append(
                    ScoredItem(
                        name,
                        task,
                        language,
                        "?",
                        "a",
                        "b",
                        None,
                        "exact",
                        correct,
                        correct,
                        True,
                        group=f"{task}{question}",
                    )
                )
    return found


def judged(before: list[ScoredItem], after: list[ScoredItem], margin: float = 0.05) -> dict[str, Finding]:
    metrics = guarded_metrics(before, ["task", "language"], margin, {}, 0.05)
    powers = [planned_power(one, before, 0.95, 0.1, len(metrics)) for one in metrics]
    return {one.metric.name: one for one in judge_guarded(metrics, powers, before, after, 0.95)}


def false_alarms(runs: int) -> float:
    rng = np.random.default_rng(0)
    alarms = [any(one.verdict == FELL for one in judged(scored(rng), scored(rng)).values()) for _ in range(runs)]
    return sum(alarms) / runs


def test_an_unchanged_model_is_seldom_called_worse() -> None:
    # At a true rate of 5 %, eight runs have more than two alarms once in 170 times.
    assert false_alarms(8) <= 2 / 8


@pytest.mark.slow
def test_an_unchanged_model_is_called_worse_no_more_often_than_stated() -> None:
    assert false_alarms(600) <= 0.06


def test_a_task_that_fell_is_named_and_the_others_are_not() -> None:
    rng = np.random.default_rng(1)
    found = judged(scored(rng), scored(rng, {"json": 0.0001}))
    assert {name for name, one in found.items() if one.verdict == FELL and name.split()[-1] in TASKS} == {
        "exact match in json"
    }
    assert all(found[f"exact match in {language}"].change.value < -0.1 for language in LANGUAGES)
    assert found["responses ended"].verdict == HELD


def test_a_fall_within_its_margin_is_none() -> None:
    before = [item(n, 1.0) for n in range(2000)]
    after = [item(n, float(n >= 40)) for n in range(2000)]  # two points lost, for certain
    metric = Metric("exact match", "exact_match", {}, 0.05)
    (found,) = judge_guarded([metric], [1.0], before, after, 0.95)
    assert (found.verdict, found.p_value < 0.001) == (HELD, True)
    (found,) = judge_guarded([metric._replace(margin=0.02)], [1.0], before, after, 0.95)
    assert found.verdict == FELL


def test_too_few_items_are_unclear_and_the_power_says_so() -> None:
    before, after = [item(n, 1.0) for n in range(10)], [item(n, float(n > 0)) for n in range(10)]
    metric = Metric("exact match", "exact_match", {}, 0.05)
    power = planned_power(metric, before, 0.95, 0.1, 1)
    (found,) = judge_guarded([metric], [power], before, after, 0.95)
    assert found.verdict == UNCLEAR and power < 0.2
    assert planned_power(metric, [item(n, n % 2) for n in range(300)], 0.95, 0.1, 1) == pytest.approx(0.86, abs=0.02)


def test_power_counts_translations_once_and_every_guarded_metric() -> None:
    alone = [item(n, float(n % 2)) for n in range(200)]
    copied = [item(n, float(n // 10 % 2))._replace(group=str(n // 10)) for n in range(200)]
    metric = Metric("exact match", "exact_match", {}, 0.05)
    powers = [planned_power(metric, items, 0.95, 0.1, tests) for items, tests in ((alone, 1), (alone, 8), (copied, 1))]
    assert powers[0] > powers[1] > powers[2]


def test_the_target_must_rise() -> None:
    before, risen = [item(n, 0.0) for n in range(100)], [item(n, float(n < 20)) for n in range(100)]
    target = Metric("exact match", "exact_match", {}, 0.05)
    assert judge_target(target, 1.0, before, risen, 0.95, 0).verdict == ROSE
    assert judge_target(target, 1.0, before, before, 0.95, 0).verdict == UNCLEAR
    assert judge_target(target, 1.0, risen, before, 0.95, 0).verdict == FELL


def test_the_items_that_got_worse_are_those_of_the_metric() -> None:
    before = [item(n, 1.0) for n in range(4)]
    after = [item(0, 0.5), item(1, 0.0), item(2, 1.0), item(3, 0.0, "names")]
    metric = Metric("exact match in sums", "exact_match", {"task": "sums"}, 0.05)
    assert [worse["id"] for worse in worst_items(metric, before, after)] == ["1", "0"]
    assert [worse["lost"] for worse in worst_items(metric, before, after)] == [1.0, 0.5]


def test_models_without_an_item_in_common_are_refused() -> None:
    metric = Metric("exact match", "exact_match", {}, 0.05)
    with pytest.raises(ValueError, match="no item that both models answered"):
        judge_guarded([metric], [1.0], [item(1, 1.0)], [item(2, 1.0)], 0.95)


def answered_from_passages(number: int, response: str) -> ScoredItem:
    reference = '{"gold": ["Ana has a dog."], "passages": ["Ana has a dog.", "Tom has a cat."]}'
    return item(number, 1.0)._replace(response=response, reference=reference, scorer="grounded")


def test_a_policy_that_makes_more_up_is_named() -> None:
    quoting, making_up = '"Ana has a dog."', '"Ana has a yacht."'
    before = [answered_from_passages(n, quoting) for n in range(100)] + [item(n, 1.0) for n in range(100, 120)]
    after = [answered_from_passages(n, making_up if n % 4 == 0 else quoting) for n in range(100)]
    (metric,) = guarded_metrics(before, [], 0.05, {}, None, 0.05)
    (found,) = judge_guarded([metric], [1.0], before, after, 0.95)
    assert (found.metric.name, found.verdict, found.change.n) == ("grounded share", FELL, 100)
    assert found.change.value == pytest.approx(-0.25)
    assert judge_guarded([metric], [1.0], before, before[:100], 0.95)[0].verdict == HELD
    assert guarded_metrics([item(0, 1.0)], [], 0.05, {}, None, 0.05) == []


def test_figures_of_sources_are_of_the_responses_that_they_concern() -> None:
    known = [answered_from_passages(n, text) for n, text in enumerate(('"Ana has a dog."', "I don't know.", "A dog."))]
    lacking = '{"gold": [], "passages": ["Tom has a cat."]}'
    unknown = [answered_from_passages(3, "I don't know."), answered_from_passages(4, '"Tom has a cat." [9]')]
    items = [*known, *(one._replace(reference=lacking) for one in unknown), item(5, 1.0)]
    figures = sourced_figures(items, 0.95)
    assert figures is not None
    assert {name: (share["value"], share["n"]) for name, share in figures.items()} == {
        "grounded": (1.0, 5),
        "cited": (pytest.approx(1 / 3), 3),
        "precision": (0.5, 2),
        "recall": (pytest.approx(1 / 3), 3),
        "abstained_right": (0.5, 2),
        "abstained_wrong": (pytest.approx(1 / 3), 3),
    }
    assert sourced_figures([item(0, 1.0)], 0.95) is None


def test_margins_of_one_task_or_language() -> None:
    metrics = guarded_metrics(scored(np.random.default_rng(2)), ["task_and_language"], 0.05, {"json": 0.2}, None)
    margins = {one.name: one.margin for one in metrics}
    assert margins["exact match in json de"] == 0.2 and margins["exact match in sums de"] == 0.05
    assert len(margins) == 12


def item(number: int, correct: float, task: str = "sums") -> ScoredItem:
    return ScoredItem(str(number), task, "en", "?", "a", "b", None, "exact", correct, None, True)
