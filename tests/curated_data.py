"""Curate rows that a test writes down, and read back what came of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.config.curate import CurateConfig, RecordType
from posttrain.data.curate import run
from posttrain.data.records import Record, dataset_type, read_records
from posttrain.data.rows.splits import prompt_cluster
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.schema import build
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

Lines = Sequence[dict[str, Any] | str]


class Curated:
    """A curated dataset, read back."""

    def __init__(self, output: Path, result: StageResult) -> None:
        self.output, self.result = output, result
        record_type = dataset_type(output)
        self.train: list[Any] = read_records(output / "train.parquet", record_type)
        self.eval: list[Any] = read_records(output / "eval.parquet", record_type)
        self.accounting = json.loads((output / "accounting.json").read_text())


def source(folder: Path, name: str, lines: Lines, **knobs: Any) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {"name": name, "path": str(path), **knobs}


def curate(
    folder: Path,
    record_type: RecordType,
    sources: list[dict[str, Any]],
    earlier: dict[str, Curated] | None = None,
    **knobs: Any,
) -> Curated:
    output = folder / "out"
    output.mkdir()
    spec = StageSpec(
        "curate", "data.curate", "test", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking()
    )
    inputs = {"sources": folder} | {name: made.output for name, made in (earlier or {}).items()}
    config = build(CurateConfig, {"record_type": record_type, "sources": sources, **knobs}, "data.curate")
    return Curated(output, run(config, Context(spec, inputs, output, folder / "work", NullTracker(), True)))


def qa(question: str, answer: str = "Yes.", **columns: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **columns}


def questions(records: Sequence[Record]) -> list[str]:
    return [prompt_cluster(record) for record in records]
