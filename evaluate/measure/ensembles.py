"""What several reward models buy over one, by the same samples or pairs: gold and proxy over N, accuracy, disagreement.

Letters of array shapes: M reward models, N samples or responses, I items, K numbers of samples, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.data.records import untied_pairs
from posttrain.evaluate.measure.pair_scores import ScoredGroup
from posttrain.evaluate.measure.selection import SampledItem, sizes_up_to
from posttrain.evaluate.measure.statistics import (
    clustered_proportion,
    mean_interval,
    pair_accuracy,
    paired_bootstrap,
)
from posttrain.sample.choose.curves import best_of_k, best_of_n_kl
from posttrain.sample.choose.ensemble import WAYS, combined, disagreement

SINGLE = "single"
"""One reward model by itself: what each of them does, averaged over them."""


def ensemble_figures(
    items: Sequence[SampledItem], penalty: float, resamples: int, confidence: float, seed: int
) -> dict[str, Any] | None:
    """Return what the best of k samples by one reward model and by several together gains over one sample.

    Gold is the true preference and proxy what chose, both in standard deviations among the samples of one item. Gains
    of gold over a single model are paired by item. None for one reward model, or without true preferences.
    """
    judged = [item for item in items if item.preference is not None]
    if not judged or len(judged[0].member_rewards) < 2:
        return None
    sizes = sizes_up_to(len(judged[0].rewards))
    gold_IN = np.array([item.preference for item in judged])
    rewards_IMN = np.array([item.member_rewards for item in judged])
    proxies: dict[str, list[NDArray[np.float64]]] = {SINGLE: list(rewards_IMN.transpose(1, 0, 2))}
    for way in WAYS:
        proxies[way] = [np.array([combined(own, way, penalty) for own in rewards_IMN])]
    gold = {way: _mean_gain(several, None, gold_IN, sizes) for way, several in proxies.items()}
    proxy = {way: _mean_gain(several, several, gold_IN, sizes) for way, several in proxies.items()}
    return {
        "models": rewards_IMN.shape[1],
        "items": len(judged),
        "kl_bound": [best_of_n_kl(k) for k in sizes],
        "gold": {way: _points(gains_IK, sizes, confidence) for way, gains_IK in gold.items()},
        "proxy": {way: _points(gains_IK, sizes, confidence) for way, gains_IK in proxy.items()},
        "over_single": {
            way: [
                {"k": k, **paired_bootstrap(gold[SINGLE][:, n], gold[way][:, n], confidence, resamples, seed).as_dict()}
                for n, k in enumerate(sizes)
            ]
            for way in WAYS
        },
        "disagreement": _disagreement(rewards_IMN, sizes),
    }


def summarise_members(
    groups: Sequence[ScoredGroup],
    rewards: NDArray[np.float64],
    names: Sequence[str],
    penalty: float,
    confidence: float,
) -> dict[str, Any]:
    """Return the accuracy of each reward model, of one on average and of all in each way, and how far they disagree.

    ``rewards`` ``MN`` are those of all responses in the order of the groups. `agreement` parts the pairs in thirds by
    how far the models differ on their margin: where accuracy falls with it, disagreement tells what not to trust.
    """
    owners = np.repeat(np.arange(len(groups)), [len(group.rewards) for group in groups])
    starts = np.searchsorted(owners, np.arange(len(groups)))
    pairs = [
        (start + chosen, start + rejected, group.id)
        for start, group in zip(starts, groups, strict=True)
        for chosen, rejected in untied_pairs(group.ranks)
    ]
    chosen_P, rejected_P, ids = (list(column) for column in zip(*pairs, strict=True))
    margins_MP = rewards[:, chosen_P] - rewards[:, rejected_P]

    def accuracy(right: NDArray[np.float64], places: NDArray[np.intp] | None = None) -> dict[str, Any]:
        clusters = ids if places is None else [ids[place] for place in places]
        return clustered_proportion(right, clusters, confidence).as_dict()

    together = {way: combined(rewards, way, penalty) for way in WAYS}
    spread_P = margins_MP.std(axis=0)
    mean_right_P = pair_accuracy(margins_MP.mean(axis=0))
    return {
        "models": dict(zip(names, [accuracy(pair_accuracy(own)) for own in margins_MP], strict=True)),
        "accuracy": {
            SINGLE: accuracy(pair_accuracy(margins_MP).mean(axis=0)),
            **{way: accuracy(pair_accuracy(one[chosen_P] - one[rejected_P])) for way, one in together.items()},
        },
        "disagreement": float(disagreement(rewards).mean()),
        "agreement": [
            {"spread": float(spread_P[part].mean()), **accuracy(mean_right_P[part], part)}
            for part in np.array_split(np.argsort(spread_P, kind="stable"), 3)
            if part.size
        ],
    }


def _mean_gain(
    proxies: Sequence[NDArray[np.float64]],
    values: Sequence[NDArray[np.float64]] | None,
    gold_IN: NDArray[np.float64],
    sizes: Sequence[int],
) -> NDArray[np.float64]:
    """Return the gain ``IK`` over one sample of what each proxy chooses, in deviations, averaged over the proxies.

    It is the gain of gold where ``values`` is None.
    """
    gains = []
    for place, proxy_IN in enumerate(proxies):
        worth_IN = gold_IN if values is None else values[place]
        spread = float(np.sqrt(worth_IN.var(axis=1, ddof=1).mean())) or 1.0
        chosen_IK = np.array([[best_of_k(p, v, k) for k in sizes] for p, v in zip(proxy_IN, worth_IN, strict=True)])
        gains.append((chosen_IK - chosen_IK[:, :1]) / spread)
    mean_IK: NDArray[np.float64] = np.mean(gains, axis=0)
    return mean_IK


def _points(gains_IK: NDArray[np.float64], sizes: Sequence[int], confidence: float) -> list[dict[str, Any]]:
    return [{"k": k, **mean_interval(gains_IK[:, place], confidence).as_dict()} for place, k in enumerate(sizes)]


def _disagreement(rewards_IMN: NDArray[np.float64], sizes: Sequence[int]) -> list[dict[str, float]]:
    """Return how far the models disagree on what one of them chooses among k: it grows where it exploits itself."""
    spread_IN = np.array([disagreement(own) for own in rewards_IMN])
    found = []
    for k in sizes:
        chosen = [
            best_of_k(proxy_N, spread_N, k)
            for own, spread_N in zip(rewards_IMN, spread_IN, strict=True)
            for proxy_N in own
        ]
        found.append({"k": k, "value": float(np.mean(chosen))})
    return found
