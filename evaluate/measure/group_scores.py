"""Is the best of a prompt's responses the one of the highest reward? Figures over groups, as RewardBench 2 counts them.

Malik et al. (2025), "RewardBench 2: advancing reward model evaluation": one right response among four, and groups in
which several are right, which must all lie above the others and closer to each other than to them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from posttrain.evaluate.measure.pair_scores import ScoredGroup
from posttrain.evaluate.measure.paired import holm, sign_flip
from posttrain.evaluate.measure.statistics import proportion


def best_first(group: ScoredGroup) -> float:
    """Return the share of best responses among those of the highest reward: 1 where the first choice is right."""
    top = max(group.rewards)
    chosen = [rank for rank, reward in zip(group.ranks, group.rewards, strict=True) if reward == top]
    return chosen.count(min(group.ranks)) / len(chosen)


def chance(group: ScoredGroup) -> float:
    """Return `best_first` of a choice at random."""
    return group.ranks.count(min(group.ranks)) / len(group.ranks)


def above_the_others(group: ScoredGroup) -> tuple[float, float] | None:
    """Return whether all that tie as best lie above all others, and closer to each other than to them.

    None for a group with one best response, or with no other.
    """
    best = [reward for rank, reward in zip(group.ranks, group.rewards, strict=True) if rank == min(group.ranks)]
    others = [reward for rank, reward in zip(group.ranks, group.rewards, strict=True) if rank > min(group.ranks)]
    if len(best) < 2 or not others:
        return None
    lead = min(best) - max(others)
    return float(lead > 0), float(lead > max(best) - min(best))


def summarise_best(groups: Sequence[ScoredGroup], confidence: float = 0.95) -> dict[str, Any]:
    """Return the figures over all groups that are no tie as a whole, and per source, task and language.

    `p_value` is of the difference between a part and all others (Fisher's exact test on right or not), corrected for
    the number of parts (Holm); where it is above 1 − confidence, the part does not differ.
    """
    untied = [group for group in groups if len(set(group.ranks)) > 1]
    return {
        "overall": _figures(untied, confidence),
        "by_source": _by(untied, lambda group: group.source, confidence),
        "by_task": _by(untied, lambda group: group.task, confidence),
        "by_language": _by(untied, lambda group: group.language, confidence),
    }


def _figures(groups: Sequence[ScoredGroup], confidence: float) -> dict[str, Any]:
    tied = [found for found in map(above_the_others, groups) if found is not None]
    above, closer = zip(*tied, strict=True) if tied else ((), ())
    return {
        "best": proportion([best_first(group) for group in groups], confidence).as_dict(),
        "chance": float(np.mean([chance(group) for group in groups])),
        "above": proportion(above, confidence).as_dict() if above else None,
        "closer": proportion(closer, confidence).as_dict() if closer else None,
    }


def _by(groups: Sequence[ScoredGroup], key: Callable[[ScoredGroup], str], confidence: float) -> dict[str, Any]:
    parts: dict[str, list[ScoredGroup]] = defaultdict(list)
    for group in groups:
        parts[key(group)].append(group)
    figures = {name: _figures(parts[name], confidence) for name in sorted(parts)}
    right = {name: sum(best_first(group) == 1 for group in own) for name, own in parts.items()}
    p_values = []
    for name in figures:
        table = [[right[name], len(parts[name]) - right[name]]]
        rest = sum(right.values()) - right[name]
        table.append([rest, len(groups) - len(parts[name]) - rest])
        p_values.append(float(stats.fisher_exact(table).pvalue))
    for name, adjusted in zip(figures, holm(p_values), strict=True):
        figures[name]["p_value"] = adjusted
    return figures


def alike(values: Mapping[str, Mapping[str, float]], confidence: float = 0.95) -> list[list[str]]:
    """Return judges in groups that do not differ, best first; one may stand in several.

    ``values`` holds each judge's value for each question; two are compared on those that both have, by the sign-flip
    test, all p-values corrected by Holm. A group is a run of judges, in order of their means, of whom no
    two differ; runs within others are left out.
    """
    order = sorted(values, key=lambda name: (-float(np.mean(list(values[name].values()))), name))
    pairs = list(combinations(order, 2))
    adjusted = dict(zip(pairs, holm([_p_value(values[one], values[other]) for one, other in pairs]), strict=True))
    runs: list[list[str]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and all(adjusted[one, order[end]] > 1 - confidence for one in order[start:end]):
            end += 1
        if not runs or not {*order[start:end]} <= {*runs[-1]}:
            runs.append(order[start:end])
    return runs


def _p_value(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    differences = [one[question] - other[question] for question in one if question in other]
    return sign_flip([difference for difference in differences if difference])[0]
