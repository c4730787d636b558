"""What N samples buy: unbiased estimates for every k ≤ N from the same N samples of a prompt.

Each function takes one prompt's samples and returns the expected value of what is picked among k of them, drawn without
replacement: the mean over all C(N, k) subsets, without listing them. A value is any score of a sample, such as 1 for
right and 0 for wrong.

Letters of array shapes: N samples of a prompt, K sizes k.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the chance that at least one of k samples is right, ``1 − C(n − right, k) / C(n, k)`` (Chen et al. 2021).

    Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ right ≤ n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"k={k} with {right} right of n={n}; give 1 <= k <= n and 0 <= right <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def best_of_k(proxy: ArrayLike, values: ArrayLike, k: int) -> float:
    """Return the expected value of the sample with the highest proxy score among k; ties are broken at random.

    In ascending order of the proxy, the i-th sample (from 1) is the best of C(i − 1, k − 1) subsets. With the values as
    their own proxy this is the oracle, which for values 0 and 1 is `pass_at_k`.
    """
    proxy_N, values_N = np.asarray(proxy, dtype=np.float64), np.asarray(values, dtype=np.float64)
    n = proxy_N.size
    if values_N.size != n or not 1 <= k <= n:
        raise ValueError(f"k={k} with {n} proxy scores and {values_N.size} values; give as many of both, 1 <= k <= n")
    places_N = np.unique(proxy_N, return_inverse=True)[1]
    mean_by_place = np.bincount(places_N, weights=values_N) / np.bincount(places_N)
    weights_N = np.array([math.comb(i, k - 1) for i in range(n)], dtype=np.float64) / math.comb(n, k)
    return float(weights_N @ mean_by_place[np.sort(places_N)])


def majority_at_k(answers: Sequence[str | None], values: ArrayLike, k: int) -> float:
    """Return the expected value of the most frequent answer among k samples; ties are broken at random.

    A sample without an answer (None) does not vote; where no sample of the k votes, any of them is taken. Samples with
    the same answer may differ in value, in which case the answer is worth their mean.
    """
    values_of: dict[str | None, list[float]] = defaultdict(list)
    for answer, value in zip(answers, np.asarray(values, dtype=np.float64).tolist(), strict=True):
        values_of[answer].append(value)
    if not 1 <= k <= len(answers):
        raise ValueError(f"k={k} of {len(answers)} samples; give 1 <= k <= samples")
    silent = values_of.pop(None, [])
    chances = _winning_chances(tuple(sorted(len(group) for group in values_of.values())), len(silent), k)
    total = math.comb(len(silent), k) / math.comb(len(answers), k) * float(np.mean(silent)) if silent else 0.0
    return total + sum(chances[len(group)] * float(np.mean(group)) for group in values_of.values())


@functools.lru_cache(maxsize=65536)
def _winning_chances(counts: tuple[int, ...], silent: int, k: int) -> dict[int, float]:
    """Return, for each count among ``counts``, the chance that one answer with so many samples wins the vote of k.

    Subsets are counted by generating functions: an answer with c samples contributes ``Σ_t C(c, t) z^t``. For a winner
    with x votes, the others stop at t = x, where a second variable counts those that tie with it.
    """
    n = sum(counts) + silent
    chances: dict[int, float] = {}
    for own in set(counts):
        others = Counter(counts)
        others[own] -= 1
        ways = 0.0
        for votes in range(1, min(own, k) + 1):
            ties_by_size = _count_others(others, silent, votes, k - votes)
            shares = 1.0 / np.arange(1, ties_by_size.shape[0] + 1)
            ways += math.comb(own, votes) * float(shares @ ties_by_size[:, k - votes])
        chances[own] = ways / math.comb(n, k)
    return chances


def _count_others(others: Counter[int], silent: int, votes: int, size: int) -> NDArray[np.float64]:
    """Return how many subsets of the other samples there are, by ties with ``votes`` and by size up to ``size``."""
    ways = np.zeros((1, size + 1))
    ways[0] = [math.comb(silent, t) for t in range(size + 1)]
    for count, times in others.items():
        for _ in range(times):
            grown = np.zeros((ways.shape[0] + 1, size + 1))
            for t in range(min(count, votes, size) + 1):
                ties = int(t == votes)
                grown[ties : ties + ways.shape[0], t:] += math.comb(count, t) * ways[:, : size + 1 - t]
            ways = grown if count >= votes else grown[:-1]
    return ways


def best_of_n_kl(n: int) -> float:
    """Return ``log n − (n − 1) / n``, the most that best-of-n moves a policy in KL divergence, in nats.

    It is exact when no two samples are alike, and an upper bound otherwise (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n
