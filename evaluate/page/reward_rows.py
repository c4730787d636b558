"""Reward models by what they were scored on: their summaries, and which of them do not differ."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from posttrain.evaluate.measure.group_scores import alike
from posttrain.evaluate.measure.statistics import pair_accuracy
from posttrain.evaluate.page.lineage import PARENT_MODEL, Lineage, Node


def reward_scores(lineage: Lineage) -> dict[str, Node]:
    """Return the scores of reward models by label: that of the model, and how many more judge with it."""
    labels = lineage.labels()
    found: dict[str, Node] = {}
    for node in lineage.of_kind("scores"):
        model = node.parents.get(PARENT_MODEL)
        if node.directory is None or model is None or lineage.nodes[model].kind != "reward_model":
            continue
        label = labels[model]
        if others := sum(name.startswith(f"{PARENT_MODEL}_") for name in node.parents):
            label += f" and {others} more"
        found[label if label not in found else f"{label} ({labels[node.id]})"] = node
    return found


def reward_models_of(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Return the summary of each reward model that was scored on something, by label."""
    read = {
        label: json.loads((node.directory / "summary.json").read_text(encoding="utf-8"))
        for label, node in reward_scores(lineage).items()
        if node.directory is not None
    }
    return {label: summary for label, summary in read.items() if summary["overall"] is not None}


def reward_models_alike(lineage: Lineage, confidence: float) -> list[list[str]]:
    """Return reward models that were scored on the same data in groups that do not differ, by the pairs of each group.

    None of those stand in it that have nothing to be compared with.
    """
    by_data: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for label, node in reward_scores(lineage).items():
        if node.directory is not None and (node.directory / "items.parquet").is_file():
            by_data[node.parents.get("data", "")][label] = _accuracy_by_group(node)
    compared = [values for values in by_data.values() if len(values) > 1]
    return [group for values in compared for group in alike(values, confidence)]


def _accuracy_by_group(node: Node) -> dict[str, float]:
    assert node.directory is not None
    table = pq.read_table(node.directory / "items.parquet", columns=["id", "chosen_score", "rejected_score"])
    right: dict[str, list[float]] = defaultdict(list)
    margins = table["chosen_score"].to_numpy() - table["rejected_score"].to_numpy()
    for question, value in zip(table["id"].to_pylist(), pair_accuracy(margins), strict=True):
        right[question].append(float(value))
    return {question: float(np.mean(values)) for question, values in right.items()}
