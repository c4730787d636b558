"""What of a benchmark got worse is said, and nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

BASELINE: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "baseline.py"))


def test_ratios_that_fell_and_memory_that_rose_by_more_than_a_tenth_are_shown() -> None:
    before = {"fell": 2.0, "near": 2.0, "rose": 2.0, "more_memory": 0.5, "less_memory": 0.5, "gone": 1.0}
    found = {"fell": 1.7, "near": 1.85, "rose": 3.0, "more_memory": 0.6, "less_memory": 0.3, "new": 1.0}
    assert BASELINE["worse"](found, before) == [
        "WORSE fell 2.00 -> 1.70 (-15%)",
        "WORSE more_memory 0.50 -> 0.60 (+20%)",
    ]


def test_a_figure_compares_with_what_was_kept_before(tmp_path: Path, capsys: Any) -> None:
    show = BASELINE["show"]
    show.__globals__["FOLDER"] = tmp_path / "baselines"
    show("sft", {"a": 2.0, "b_share_of_bound": 0.5}, keep=True)
    show("sft", {"a": 1.0}, keep=False)
    show("sft", {"b_share_of_bound": 0.6}, keep=True)
    show("sft", {"a": 1.9}, keep=False)
    assert capsys.readouterr().out.splitlines() == [
        "no sft.json yet",
        "RESULT a 2.00 x",
        "RESULT b_share_of_bound 0.50 of 1",
        "WORSE a 2.00 -> 1.00 (-50%)",
        "RESULT a 1.00 x",
        "nothing is worse than sft.json",
        "RESULT b_share_of_bound 0.60 of 1",
        "nothing is worse than sft.json",
        "RESULT a 1.90 x",
    ]
