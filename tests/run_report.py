"""Run the report in this process, for tests of its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.evaluate import report
from posttrain.evaluate.config.report import ReportConfig
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker


def run_report(inputs: dict[str, Path], output: Path, **config: Any) -> StageResult:
    """Write the report on some artifacts into a new folder."""
    output.mkdir()
    spec = StageSpec(
        "report", "evaluate.report", "demo", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking()
    )
    context = Context(spec, inputs, output, output, NullTracker(), main_process=True)
    return report.run(ReportConfig(**config), context)
