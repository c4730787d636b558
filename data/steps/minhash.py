"""MinHash of texts, and which texts share a band of it: candidates for being near duplicates.

Broder, "On the resemblance and containment of documents" (1997): the chance that two sets have the same smallest hash
is their Jaccard similarity. Of ``BANDS`` bands of ``ROWS`` hashes, texts of similarity s share at least one with
probability 1 − (1 − s^ROWS)^BANDS: 0.9996 at 0.8.

Shapes: T, texts; G, runs of words; H, hashes of a signature; B, bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posttrain.data.steps.words import Hashes, grams, mixed, words

BANDS = 20
ROWS = 5
HASHES = BANDS * ROWS
_SEED = 20_240_229

Short = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Prints:
    """What stands for texts where they are compared."""

    signatures: Short
    """[T, H]"""
    empty: npt.NDArray[np.bool_]
    """[T]: texts without words, which resemble nothing."""


def shingles(text: str, shingle_words: int) -> frozenset[int]:
    """Return the set of runs of words of one text."""
    return frozenset(_halved(grams([words(text)], shingle_words).hashes).tolist())


def fingerprint(texts: Sequence[str], shingle_words: int) -> Prints:
    """Return the prints of texts, from runs of ``shingle_words`` words; the same for any way to batch texts."""
    found = grams([words(text) for text in texts], shingle_words)
    counts_T = np.diff(np.append(found.starts, len(found.hashes)))
    shingles_G = _halved(found.hashes)
    signatures_TH = np.zeros((len(texts), HASHES), dtype=np.uint32)
    full_T = counts_T > 0
    if full_T.any():
        factors_H, offsets_H = _permutations()
        hashed_G = np.empty_like(shingles_G)
        starts = found.starts[full_T]
        for index in range(HASHES):
            np.multiply(shingles_G, factors_H[index], out=hashed_G)
            hashed_G += offsets_H[index]
            signatures_TH[full_T, index] = np.minimum.reduceat(hashed_G, starts)
    return Prints(signatures_TH, ~full_T)


def _halved(hashes: Hashes) -> Short:
    return (hashes >> np.uint64(32)).astype(np.uint32)


def joined(parts: list[Prints]) -> Prints:
    """Return the prints of several batches as one; ``parts`` is emptied on the way, so that nothing is held twice."""
    sizes = [len(part.empty) for part in parts]
    made = Prints(np.empty((sum(sizes), HASHES), dtype=np.uint32), np.empty(sum(sizes), dtype=np.bool_))
    end = sum(sizes)
    while parts:
        part = parts.pop()
        start = end - len(part.empty)
        made.signatures[start:end], made.empty[start:end] = part.signatures, part.empty
        end = start
    return made


def _permutations() -> tuple[Short, Short]:
    """Return factors and offsets of hash functions h(x) = factor · x + offset modulo 2^32."""
    drawn = mixed(np.arange(2 * HASHES, dtype=np.uint64) + np.uint64(_SEED))
    low = (drawn & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return low[:HASHES] | np.uint32(1), low[HASHES:]


def shared_bands(prints: Prints) -> npt.NDArray[np.int32]:
    """Return for each text and band the number of the group of texts that share it, -1 where nobody else does."""
    groups_TB = np.full((len(prints.empty), BANDS), -1, dtype=np.int32)
    full = np.flatnonzero(~prints.empty)
    numbered = 0
    for band in range(BANDS):
        _, inverse, counts = np.unique(_band(prints, band)[full], return_inverse=True, return_counts=True)
        numbers = np.cumsum(counts > 1, dtype=np.int32) + (numbered - 1)
        shared = counts[inverse] > 1
        groups_TB[full[shared], band] = numbers[inverse[shared]]
        numbered += int((counts > 1).sum())
    return groups_TB


def _band(prints: Prints, band: int) -> Hashes:
    """Return a hash of one band of each text, [T]."""
    total_T = np.zeros(len(prints.empty), dtype=np.uint64)
    for row in range(ROWS):
        total_T = mixed(total_T + prints.signatures[:, band * ROWS + row].astype(np.uint64))
    return total_T
