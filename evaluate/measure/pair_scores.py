"""Rewards of ranked responses, as pairs: accuracy, calibration and the pull of length."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain.data.records import untied_pairs
from posttrain.evaluate.measure.statistics import (
    calibration,
    calibration_error,
    clustered_proportion,
    correlation,
    pair_accuracy,
    within_group_correlation,
)

INTERVAL = "Wilson interval at the effective sample size of the standard error clustered by group"


@dataclasses.dataclass(frozen=True)
class ScoredGroup:
    """The ranked responses to one prompt: rank (1 is best), reward and length in tokens of each."""

    id: str
    source: str
    task: str
    language: str
    ranks: list[int]
    rewards: list[float]
    lengths: list[int]


class ScoredPair(NamedTuple):
    """Two responses of one group that are not tied."""

    id: str
    """The group's."""
    source: str
    task: str
    language: str
    chosen: int
    """Index of the better ranked response in its group."""
    rejected: int
    chosen_score: float
    rejected_score: float
    chosen_length: int
    rejected_length: int


def pairs_of(group: ScoredGroup) -> list[ScoredPair]:
    """Return every pair of a group whose ranks differ, the better one as chosen."""
    return [
        ScoredPair(
            group.id,
            group.source,
            group.task,
            group.language,
            chosen,
            rejected,
            group.rewards[chosen],
            group.rewards[rejected],
            group.lengths[chosen],
            group.lengths[rejected],
        )
        for chosen, rejected in untied_pairs(group.ranks)
    ]


def summarise_pairs(groups: Sequence[ScoredGroup], confidence: float = 0.95) -> dict[str, Any]:
    """Return a reward model's figures over all untied pairs, and per source, task and language.

    Raises ValueError when there is no untied pair.
    """
    pairs = [pair for group in groups for pair in pairs_of(group)]
    if not pairs:
        raise ValueError("no untied pair; give groups whose ranks differ")
    bins = calibration(
        [pair.chosen_score - pair.rejected_score for pair in pairs],
        confidence=confidence,
        groups=[pair.id for pair in pairs],
    )
    return {
        "overall": _figures(pairs, confidence),
        "by_source": _by(pairs, lambda pair: pair.source, confidence),
        "by_task": _by(pairs, lambda pair: pair.task, confidence),
        "by_language": _by(pairs, lambda pair: pair.language, confidence),
        "groups": len(groups),
        "interval": INTERVAL,
        "rewards": _reward_figures(groups),
        "calibration": [dataclasses.asdict(part) for part in bins],
        "calibration_error": calibration_error(bins),
    }


LENGTH_MATCHED = 0.1
"""Share of the longer response's tokens by which the lengths of a pair may differ that is matched in length."""


def _matched(pair: ScoredPair) -> bool:
    longer = max(pair.chosen_length, pair.rejected_length)
    return abs(pair.chosen_length - pair.rejected_length) <= LENGTH_MATCHED * longer


def _figures(pairs: Sequence[ScoredPair], confidence: float) -> dict[str, Any]:
    margins = [pair.chosen_score - pair.rejected_score for pair in pairs]
    length_margins = [pair.chosen_length - pair.rejected_length for pair in pairs]
    accuracy = clustered_proportion(pair_accuracy(margins), [pair.id for pair in pairs], confidence)
    alike = [pair for pair in pairs if _matched(pair)]
    matched = (
        clustered_proportion(
            pair_accuracy([pair.chosen_score - pair.rejected_score for pair in alike]),
            [pair.id for pair in alike],
            confidence,
        )
        if alike
        else None
    )
    return {
        "accuracy": accuracy.as_dict(),
        "groups": len({pair.id for pair in pairs}),
        "mean_margin": float(np.mean(margins)),
        "length_matched": None if matched is None else matched.as_dict(),
        "longer_wins_accuracy": float(pair_accuracy(length_margins).mean()),
    }


def _by(pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], str], confidence: float) -> dict[str, Any]:
    parts: dict[str, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        parts[key(pair)].append(pair)
    return {name: _figures(parts[name], confidence) for name in sorted(parts)}


def _reward_figures(groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    rewards = np.array([reward for group in groups for reward in group.rewards])
    lengths = np.array([length for group in groups for length in group.lengths])
    owners = [index for index, group in enumerate(groups) for _ in group.rewards]
    return {
        "responses": len(rewards),
        "mean": float(rewards.mean()),
        "std": float(rewards.std(ddof=1)),
        "length_correlation": correlation(rewards, lengths),
        "length_correlation_within_group": within_group_correlation(rewards, lengths, owners),
    }
