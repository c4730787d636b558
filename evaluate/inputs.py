"""Read what the evaluation stages need of their input artifacts, with all checks before a model loads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.records import SPLITS, EvaluationItem, dataset_type, read_records
from posttrain.data.scorers import RATINGS, require_scorer
from posttrain.stage.errors import UsageError


def read_heldout_tokens(directory: Path, record_type: str, template_sha256: str) -> list[dict[str, Any]]:
    """Return the held-out rows of a tokens artifact.

    Raises UsageError when it holds another record type, was made with another chat template than the model's, or has no
    held-out rows.
    """
    facts = json.loads((directory / "tokens.json").read_text(encoding="utf-8"))
    if facts["record_type"] != record_type:
        raise UsageError(f"{directory.name}: holds {facts['record_type']} tokens; give {record_type} tokens")
    if facts["template_sha256"] != template_sha256:
        raise UsageError(
            f"{directory.name}: made with chat template {facts['template_sha256'][:12]}, but the model's is "
            f"{template_sha256[:12]}; tokenize with the model that you evaluate"
        )
    rows: list[dict[str, Any]] = pq.read_table(directory / "eval.parquet").to_pylist()
    if not rows:
        raise UsageError(f"{directory.name}: no held-out rows; raise eval_fraction where its dataset is curated")
    return rows


def read_evaluation_items(directory: Path) -> list[EvaluationItem]:
    """Return the held-out evaluation items of a dataset, or all of them when none is held out.

    Raises UsageError when the dataset holds other records or nothing, or an item names a scorer that cannot be used.
    """
    record_type = dataset_type(directory)
    if record_type is not EvaluationItem:
        raise UsageError(f"{directory.name}: holds {record_type.__name__} records; give a dataset of evaluation items")
    items = read_records(directory / "eval.parquet", EvaluationItem)
    if not items:
        items = [item for split in SPLITS for item in read_records(directory / f"{split}.parquet", EvaluationItem)]
    if not items:
        raise UsageError(f"{directory.name}: no evaluation items; look at its accounting.json for where they went")
    for item in items:
        try:
            require_scorer(item.scorer)
        except UsageError as error:
            raise UsageError(f"{directory.name}: item {item.id}: {error}") from None
    return items


def require_right_and_wrong(items: Iterable[EvaluationItem], where: str) -> None:
    """Raise UsageError, naming the stage ``where``, for an item whose scorer only rates and calls nothing right."""
    for item in items:
        if item.scorer in RATINGS:
            raise UsageError(
                f"{where}: item {item.id}: {item.scorer} rates responses and calls none right, so there is no share "
                "of right ones; use evaluate.drift, which takes means"
            )
