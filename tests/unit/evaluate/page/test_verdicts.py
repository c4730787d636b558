"""Verdicts of gates on the report's page, and tables that stay narrow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_pipeline import Store, build_pipeline

from posttrain.evaluate import gate, report
from posttrain.evaluate.config.gate import GateConfig
from posttrain.evaluate.config.report import ReportConfig
from posttrain.stage.entry import Context
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pipeline(tmp_path_factory.mktemp("store"))


def context_of(inputs: dict[str, Path], output: Path) -> Context:
    output.mkdir()
    spec = StageSpec("g", "evaluate.g", "p", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
    return Context(spec, inputs, output, output, NullTracker(), main_process=True)


def test_verdicts_stand_first_and_name_the_items(inputs: dict[str, Path], tmp_path: Path) -> None:
    scores = {"before": inputs["evaluate_sft"], "after": inputs["evaluate_base"]}  # what was learned is lost again
    result = gate.run(GateConfig(), context_of(scores, tmp_path / "gate"))
    said = {"verdict.json": (tmp_path / "gate" / "verdict.json").read_text(encoding="utf-8")}
    verdict = Store(inputs["evaluate_sft"].parent).add("gate_base", "verdict", "evaluate.gate", scores, said)
    made = report.run(ReportConfig(), context_of({**scores, "gate": verdict}, tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert made.headline.startswith("base failed; ")
    assert page.index('id="verdicts"') < page.index('id="changes"')
    assert "base: failed, must not be built upon" in page
    assert "exact match in refusal fell: −" in page.replace("fell: -", "fell: −") and "margin 0.05" in page
    assert "items that got worse: exact match in refusal" in page and "item-0" in page
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["verdicts"]["gate_base"]["state"] == "failed"
    assert "; ".join(summary["verdicts"]["gate_base"]["reasons"]) in result.facts["reason"]


def test_tables_of_steps_are_no_wider_for_more_of_them(inputs: dict[str, Path], tmp_path: Path) -> None:
    report.run(ReportConfig(), context_of(inputs, tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tables = re.findall(r"<thead><tr><th scope=\"col\">step</th>.*?</thead>", page, re.DOTALL)
    assert len(tables) == 2 and all(table.count("<th ") == 5 for table in tables)
