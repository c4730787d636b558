"""The gate's verdict: what it names, what it stops, and what it says where it cannot tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_pipeline import Store

from posttrain.evaluate import gate
from posttrain.evaluate.config.gate import GateConfig
from posttrain.evaluate.measure.drift_scores import SampledResponse, write_responses
from posttrain.evaluate.measure.item_scores import ScoredItem, write_items
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

Right = Callable[[int, str], float]


def items(right: Right, ended: bool = True) -> list[ScoredItem]:
    return [
        ScoredItem(
            f"{task}/{n}",
            task,
            "en",
            f"ask {n}",
            f"say {right(n, task)}",
            "b",
            None,
            "exact",
            right(n, task),
            None,
            ended,
        )
        for task in ("sums", "json")
        for n in range(150)
    ]


def half(n: int, task: str) -> float:
    return float(n % 2)


def gains(n: int, task: str) -> float:
    return float(n % 4 > 0)


def forgets_json(n: int, task: str) -> float:
    return 1.0 if task == "sums" else float(n % 2 and n % 3 > 0)


def without_json(n: int, task: str) -> float:
    return 1.0 if task == "sums" else max(half(n, task), float(n % 10 == 0))


class Bench:
    """A store in which scores stand, and the gate over two of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.models = {name: self.store.add(name, "model", "train.sft") for name in ("base", "sft")}

    def scores(self, name: str, right: Right | None, loss: float | None = None, ended: bool = True) -> Path:
        folder = self.root / f".evaluate_{name}"
        folder.mkdir()
        if right is not None:
            write_items(folder, items(right, ended))
        losses = None if loss is None else {"overall": {"loss": loss}}
        summary = {"summary.json": {"loss": losses, "items": None, "too_long": []}}
        return self.store.add(f"evaluate_{name}", "scores", "evaluate.policy", {"model": self.models[name]}, summary)

    def judge(self, inputs: dict[str, Path], **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        output = self.root / f"out-{len(list(self.root.glob('out-*')))}"
        output.mkdir()
        spec = StageSpec("g", "evaluate.gate", "p", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
        context = Context(spec, inputs, output, output, NullTracker(), main_process=True)
        result = gate.run(GateConfig(**config), context)
        return json.loads((output / "verdict.json").read_text(encoding="utf-8")), result.facts


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_failed_gate_names_the_task_and_the_items_that_got_worse(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", half), "after": bench.scores("sft", forgets_json)}
    verdict, facts = bench.judge(inputs)
    assert (verdict["state"], verdict["blocks"], verdict["model"]) == ("failed", True, bench.models["sft"].name)
    (reason,) = verdict["reasons"]
    assert reason.startswith("exact match in json fell: -0.167 [") and "worse: json/105, json/111" in reason
    (worst, *_) = verdict["worse"]["exact match in json"]
    assert (worst["before"], worst["after"]) == ("say 1.0", "say 0.0")
    assert len(verdict["worse"]["exact match in json"]) == 20
    assert facts["reason"] == f"{verdict['model']} failed: {reason}"
    assert not bench.judge(inputs, mode="report")[1]["blocks"]


def test_a_model_that_gained_passes(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", half), "after": bench.scores("sft", gains)}
    verdict, facts = bench.judge(inputs)
    assert (verdict["state"], facts["blocks"], verdict["reasons"], verdict["worse"]) == ("passed", False, [], {})
    findings = {one["name"]: one for one in verdict["findings"]}
    assert findings["exact match"]["verdict"] == "rose"
    assert {one["verdict"] for name, one in findings.items() if name != "exact match"} == {"held"}


def test_a_target_that_did_not_rise_fails_where_it_would_have_shown(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", half), "after": bench.scores("sft", half)}
    verdict, _ = bench.judge(inputs)
    assert verdict["reasons"] == ["target exact match did not rise: +0.000 [-0.010, +0.010] on 300 items"]
    assert bench.judge(inputs, target="none")[0]["state"] == "passed"
    # A rise of a hundredth would not show on 300 items: that it did not is no failure, and no success either.
    verdict, facts = bench.judge(inputs, target_rise=0.01)
    assert (verdict["state"], facts["blocks"]) == ("underpowered", False)
    assert "exact match (power" in verdict["reasons"][0]
    assert bench.judge(inputs, target_rise=0.01, strict=True)[1]["blocks"]
    with pytest.raises(UsageError, match="target=preference: no item has one"):
        bench.judge(inputs, target="preference")


def test_a_task_that_was_never_learned_is_under_its_floor(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", half), "after": bench.scores("sft", without_json)}
    # 0.5 → 0.6 in json is no fall, and the target rose.
    assert bench.judge(inputs)[0]["state"] == "passed"
    verdict, facts = bench.judge(inputs, floors={"json": 0.8, "sums": 0.8})
    (reason,) = verdict["reasons"]
    assert reason.startswith("exact match in json is 0.600 [0.")
    assert reason.endswith("on 150 items, under its floor of 0.8")
    assert facts["blocks"]
    # What may well be 0.65 does not fail a floor of 0.65.
    assert bench.judge(inputs, floors={"json": 0.65})[0]["state"] == "passed"
    with pytest.raises(UsageError, match=r"evaluate\.gate\.floors\.jsno: no item is of that task or language"):
        bench.judge(inputs, floors={"jsno": 0.5})


def test_responses_that_no_longer_end_fail(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", half), "after": bench.scores("sft", gains, ended=False)}
    (reason,) = bench.judge(inputs)[0]["reasons"]
    assert reason.startswith("responses ended fell: -1.000")


def test_without_items_the_held_out_loss_is_the_target(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", None, 2.0), "after": bench.scores("sft", None, 1.5)}
    assert bench.judge(inputs)[0]["state"] == "passed"
    swapped = {"before": inputs["after"], "after": inputs["before"]}
    assert bench.judge(swapped)[0]["reasons"] == ["held-out loss did not fall: 1.500 → 2.000"]
    assert bench.judge(swapped, target="none")[0]["state"] == "passed"
    assert "rose" in bench.judge(swapped, target="none", max_loss_rise=0.1)[0]["reasons"][0]


def test_a_loss_that_is_no_number_is_no_gain(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", None, 2.0), "after": bench.scores("sft", None, float("nan"))}
    assert bench.judge(inputs)[0]["state"] == "failed"


def test_nothing_scored_tells_nothing_and_is_said(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", None), "after": bench.scores("sft", None)}
    verdict, facts = bench.judge(inputs)
    assert (verdict["state"], facts["blocks"]) == ("underpowered", False)
    assert verdict["reasons"] == ["neither items nor held-out rows were scored of both models"]
    assert bench.judge(inputs, strict=True)[1]["blocks"]


def test_a_policy_may_not_lie_too_far_from_its_reference(bench: Bench) -> None:
    inputs = {"before": bench.scores("base", half), "after": bench.scores("sft", gains)}
    with pytest.raises(UsageError, match=r"max_kl=2\.0: how far .* give inputs.drift"):
        bench.judge(inputs, max_kl=2.0)
    far = {"kl": {"value": 3.0, "low": 2.5, "high": 3.5}}
    drift = bench.store.add("drift", "drift", "evaluate.drift", {"model": bench.models["sft"]}, {"summary.json": far})
    assert bench.judge({**inputs, "drift": drift}, max_kl=2.0)[0]["reasons"] == [
        "KL from the reference 3.00 [2.50, 3.50], more than 2.0"
    ]
    assert bench.judge({**inputs, "drift": drift}, max_kl=2.6)[0]["state"] == "passed"


def test_samples_of_drift_are_judged_by_their_mean(bench: Bench) -> None:
    def drift(name: str, lift: float) -> Path:
        folder = bench.root / f".drift_{name}"
        folder.mkdir()
        responses = [
            SampledResponse(str(n), "t", "en", k, "?", "r", 3, True, k + lift + n % 3 / 9, None, 0.0, 0.0, 0.0, 0.0)
            for n in range(100)
            for k in range(2)
        ]
        write_responses(folder, responses)
        return bench.store.add(
            f"drift_{name}", "drift", "evaluate.drift", {"model": bench.models[name]}, {"summary.json": {}}
        )

    inputs = {"before": drift("base", 0.0), "after": drift("sft", 0.2)}
    (target, *_) = bench.judge(inputs)[0]["findings"]
    assert (target["verdict"], target["n"], target["value"]) == ("rose", 100, pytest.approx(0.2))
    assert bench.judge({"before": inputs["after"], "after": inputs["before"]})[0]["state"] == "failed"
