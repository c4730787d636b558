"""Policies side by side: their order, their figures, and paired comparisons on the same items."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from statistics import fmean
from typing import Any

from posttrain.evaluate.measure.item_scores import ScoredItem, read_items, summarise_items
from posttrain.evaluate.measure.paired import detectable, holm, paired_change
from posttrain.evaluate.measure.statistics import lost_and_won
from posttrain.evaluate.page.lineage import PARENT_MODEL, Lineage

METRICS: dict[str, Callable[[ScoredItem], float | None]] = {
    "exact_match": lambda item: item.correct,
    "preference": lambda item: item.preference,
}
METRIC_NAMES = {"exact_match": "exact match", "preference": "preference"}


@dataclasses.dataclass(frozen=True)
class Policy:
    """One evaluated policy."""

    label: str
    model: str
    """Node id of the model."""
    items: list[ScoredItem]
    figures: dict[str, Any] | None
    """`summarise_items` of the items; None without items."""
    loss: dict[str, Any] | None
    """`summarise_losses` of the held-out rows; None without them."""
    too_long: int
    """Items left out because the model's context had no room for a response."""
    scores: str = ""
    """Node id of the evaluation."""


def policies_of(lineage: Lineage, confidence: float) -> list[Policy]:
    """Return the policies that the scores of a lineage are about, in the order in which they descend."""
    labels = lineage.labels()
    scores = [node for node in lineage.of_kind("scores") if _scored_kind(lineage, node.parents) == "model"]
    models = [node.parents[PARENT_MODEL] for node in scores]
    found = []
    for node, model in zip(scores, models, strict=True):
        assert node.directory is not None
        items = read_items(node.directory)
        summary = json.loads((node.directory / "summary.json").read_text(encoding="utf-8"))
        label = labels[model] if models.count(model) == 1 else f"{labels[model]} ({labels[node.id]})"
        figures = summarise_items(items, confidence) if items else None
        found.append(Policy(label, model, items, figures, summary["loss"], len(summary["too_long"]), node.id))
    return sorted(found, key=lambda policy: (lineage.depth[policy.model], policy.label))


def _scored_kind(lineage: Lineage, parents: dict[str, str]) -> str | None:
    return lineage.nodes[parents[PARENT_MODEL]].kind if PARENT_MODEL in parents else None


def consecutive(lineage: Lineage, policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """Return (before, after) for each policy with items that another one listed before it answered, too.

    Before is the nearest evaluated model that a policy descends from; where there is none, the last one listed.
    """
    with_items = [policy for policy in policies if policy.items]
    pairs = []
    for index, after in enumerate(with_items):
        asked = {item.id for item in after.items}
        alike = [policy for policy in with_items[:index] if not asked.isdisjoint(item.id for item in policy.items)]
        if not alike:
            continue
        earlier = {policy.model: policy for policy in reversed(alike)}
        ancestor = next((model for model in lineage.model_ancestors(after.model) if model in earlier), None)
        pairs.append((earlier[ancestor] if ancestor is not None else alike[-1], after))
    return pairs


def compare(
    before: Policy, after: Policy, confidence: float, resamples: int, seed: int, **group: str
) -> list[dict[str, Any]]:
    """Return one row per metric on the items that both policies answered: means, difference, interval, n and p-value.

    Translations of one question are one cluster. `detectable` is the least true difference that so many items show with
    a power of 80 %. The rows of exact match also count the items that were lost and won. ``group`` narrows the items,
    such as ``task="arithmetic"``, and is part of the rows.
    """
    earlier = {item.id: item for item in before.items}
    shared = [
        (earlier[item.id], item)
        for item in after.items
        if item.id in earlier and all(getattr(item, name) == value for name, value in group.items())
    ]
    rows = []
    for metric, read in METRICS.items():
        scores = [(read(one), read(other), other.cluster) for one, other in shared]
        scores = [(x, y, cluster) for x, y, cluster in scores if None not in (x, y)]
        if not scores:
            continue
        x_N, y_N, clusters_N = zip(*scores, strict=True)
        change = paired_change(x_N, y_N, clusters_N, confidence, resamples, seed)
        row: dict[str, Any] = {"before": before.label, "after": after.label, "metric": metric, **group}
        row |= {"was": fmean(x_N), "now": fmean(y_N)}
        row |= {"difference": change.value, "low": change.low, "high": change.high, "n": change.n}
        row |= {"clusters": change.clusters, "p_value": change.p_value}
        row["detectable"] = detectable(change.error, confidence)
        if metric == "exact_match":
            row["lost"], row["won"] = lost_and_won([x == 1 for x in x_N], [y == 1 for y in y_N])
        rows.append(row)
    return rows


def compare_groups(
    before: Policy, after: Policy, group: str, confidence: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the rows of `compare` for each task (``group="task"``) or language that both policies answered.

    Their p-values are also given `adjusted` (Holm) for how many groups a metric is shown of.
    """
    values = {getattr(item, group) for item in before.items} & {getattr(item, group) for item in after.items}
    rows = []
    for value in sorted(values):
        rows += compare(before, after, confidence, resamples, seed, **{group: value})
    for metric in METRICS:
        shown = [row for row in rows if row["metric"] == metric]
        for row, adjusted in zip(shown, holm([row["p_value"] for row in shown]), strict=True):
            row["adjusted"] = adjusted
    return rows


def select_samples(policies: Sequence[Policy], count: int, seed: int) -> list[list[ScoredItem]]:
    """Return ``count`` items that every policy answered, each with the policies' responses in their order.

    Drawn at random, in turns from each task and language, and listed by task and language.
    """
    answers = [{item.id: item for item in policy.items} for policy in policies if policy.items]
    if not answers:
        return []
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item_id in sorted(set.intersection(*(set(answer) for answer in answers))):
        item = answers[0][item_id]
        groups[item.task, item.language].append(item_id)
    rng = random.Random(seed)
    queues = [rng.sample(ids, len(ids)) for ids in groups.values()]
    rng.shuffle(queues)
    drawn = [item_id for item_id in chain.from_iterable(zip_longest(*queues)) if item_id is not None][:count]
    drawn.sort(key=lambda item_id: (answers[0][item_id].task, answers[0][item_id].language, item_id))
    return [[answer[item_id] for answer in answers] for item_id in drawn]
