"""How far two who label the same things agree, beyond what chance gives: Cohen's kappa with an interval.

Letters of array shapes: N things, G clusters, C labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.evaluate.measure.statistics import Interval, bootstrap_sums, percentile_interval


def kappa(counts_CC: ArrayLike) -> float:
    """Return Cohen's kappa of a table of how often the one says a label (row) where the other says another (column).

    ``(agreement − chance) / (1 − chance)``, where chance is that of two who label alike often but apart (Cohen 1960). 1
    where both give one and the same label throughout, which leaves nothing to chance.
    """
    return float(_kappas(np.asarray(counts_CC, dtype=np.float64)[None])[0])


def kappa_interval(
    one: Sequence[Hashable],
    other: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return kappa of two sequences of labels with its percentile bootstrap interval over clusters.

    Without ``clusters`` each thing is its own. Raises ValueError when the inputs differ in length or are empty.
    """
    if len(one) != len(other) or not one or (clusters is not None and len(clusters) != len(one)):
        raise ValueError(f"{len(one)} labels and {len(other)}; give both for the same things")
    places = {label: place for place, label in enumerate(dict.fromkeys([*one, *other]))}
    size = len(places)
    cells_N = np.array([places[a] * size + places[b] for a, b in zip(one, other, strict=True)])
    owners = {
        name: place for place, name in enumerate(dict.fromkeys(clusters if clusters is not None else range(len(one))))
    }
    owners_N = np.array([owners[name] for name in (clusters if clusters is not None else range(len(one)))])
    tables_G = np.zeros((len(owners), size * size))
    np.add.at(tables_G, (owners_N, cells_N), 1)
    draws_R = _kappas(bootstrap_sums(tables_G, resamples, seed).reshape(-1, size, size))
    return percentile_interval(kappa(tables_G.sum(0).reshape(size, size)), draws_R, len(one), confidence)


def _kappas(counts_RCC: NDArray[np.float64]) -> NDArray[np.float64]:
    shares_RCC = counts_RCC / counts_RCC.sum((1, 2), keepdims=True)
    agreed_R = np.trace(shares_RCC, axis1=1, axis2=2)
    chance_R = (shares_RCC.sum(1) * shares_RCC.sum(2)).sum(1)
    certain_R = chance_R >= 1 - 1e-12
    return np.where(certain_R, 1.0, (agreed_R - chance_R) / np.where(certain_R, 1.0, 1 - chance_R))
