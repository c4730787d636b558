"""Write one page about curated datasets: what each step did to which rows, and what the rows that stay are.

python -m posttrain.evaluate.data inputs.demonstrations=DIR inputs.items=DIR output=DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.data.records import dataset_type, type_name
from posttrain.data.tokens.cost import load_tokenizer_file
from posttrain.evaluate.config.data import DataPageConfig
from posttrain.evaluate.measure.annotators import annotator_figures
from posttrain.evaluate.page.accounting import read_account, read_accounting
from posttrain.evaluate.page.data_flow import flow_of
from posttrain.evaluate.page.data_page import Dataset, render_data_page
from posttrain.evaluate.page.data_rows import measure
from posttrain.evaluate.page.data_samples import drawn
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic


def run(config: DataPageConfig, context: Context) -> StageResult:
    """Write data.html and summary.json."""
    if not context.inputs:
        raise UsageError("evaluate.data: nothing to show; give inputs.NAME=DIR for datasets")
    tokenizer = load_tokenizer_file(Path(config.tokenizer)) if config.tokenizer is not None else None
    datasets = [
        _dataset(name, directory, config, context.spec.seed, tokenizer) for name, directory in context.inputs.items()
    ]
    accounts = [read_account(directory, name, "dataset") for name, directory in context.inputs.items()]
    headline = "; ".join(_told(dataset) for dataset in datasets)
    summary = {dataset.label: dataset.summary(config.max_length) for dataset in datasets}
    write_json_atomic(context.output / "summary.json", summary)
    page = render_data_page(
        context.spec.pipeline, datasets, [account for account in accounts if account], config.max_length, headline
    )
    (context.output / "data.html").write_text(page, encoding="utf-8")
    return StageResult(metrics={"datasets": len(datasets)}, headline=headline)


def _dataset(name: str, directory: Path, config: DataPageConfig, seed: int, tokenizer: Any | None) -> Dataset:
    record_type = dataset_type(directory)
    told = drawn(directory, record_type, config.samples, seed)
    rows = measure(directory, record_type, tokenizer)
    return Dataset(
        name,
        type_name(record_type),
        flow_of(read_accounting(directory), told.events),
        told,
        rows,
        read_manifest(directory).facts.get("sources", {}),
        annotator_figures(rows.judgements, config.confidence, config.resamples, seed),
    )


def _told(dataset: Dataset) -> str:
    return f"{dataset.label}: {dataset.flow[-1].total('kept'):,} of {dataset.flow[0].total('rows_in'):,} rows kept"


if __name__ == "__main__":
    stage_main(run, DataPageConfig, kind="data_page")
