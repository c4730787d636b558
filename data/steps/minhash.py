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

from posttrain.data.steps.words import Hashes, Places, grams, mixed, words

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
    runs: Short
    """[G], text by text, halved to 32 bits."""
    starts: Places
    """[T]: where the runs of each text begin."""
    empty: npt.NDArray[np.bool_]
    """Texts without words, which resemble nothing."""

    def shingles(self, text: int) -> frozenset[int]:
        """Return the set of runs of one text."""
        end = self.starts[text + 1] if text + 1 < len(self.starts) else len(self.runs)
        return frozenset(self.runs[self.starts[text] : end].tolist())

    def bands(self) -> Hashes:
        """Return a hash of each band of each text, [T, B]."""
        total_TB = np.zeros((len(self.signatures), BANDS), dtype=np.uint64)
        for row in range(ROWS):
            total_TB = mixed(total_TB + self.signatures[:, row::ROWS].astype(np.uint64))
        return total_TB


def fingerprint(texts: Sequence[str], shingle_words: int) -> Prints:
    """Return the prints of texts, from runs of ``shingle_words`` words; the same for any way to batch texts."""
    found = grams([words(text) for text in texts], shingle_words)
    counts_T = np.diff(np.append(found.starts, len(found.hashes)))
    shingles_G = (found.hashes >> np.uint64(32)).astype(np.uint32)
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
    return Prints(signatures_TH, shingles_G, found.starts, ~full_T)


def joined(parts: Sequence[Prints]) -> Prints:
    """Return the prints of several batches as one."""
    sizes = np.cumsum([0, *(len(part.runs) for part in parts)])
    return Prints(
        np.concatenate([part.signatures for part in parts]),
        np.concatenate([part.runs for part in parts]),
        np.concatenate([part.starts + size for part, size in zip(parts, sizes[:-1], strict=True)]),
        np.concatenate([part.empty for part in parts]),
    )


def _permutations() -> tuple[Short, Short]:
    """Return factors and offsets of hash functions h(x) = factor · x + offset modulo 2^32."""
    drawn = mixed(np.arange(2 * HASHES, dtype=np.uint64) + np.uint64(_SEED))
    low = (drawn & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return low[:HASHES] | np.uint32(1), low[HASHES:]


def shared_bands(prints: Prints) -> npt.NDArray[np.int64]:
    """Return for each text and band the number of the group of texts that share it, -1 where nobody else does."""
    bands_TB = prints.bands()
    groups_TB = np.full(bands_TB.shape, -1, dtype=np.int64)
    full = np.flatnonzero(~prints.empty)
    numbered = 0
    for band in range(BANDS):
        _, inverse, counts = np.unique(bands_TB[full, band], return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        groups_TB[full[shared], band] = inverse[shared] + numbered
        numbered += len(counts)
    return groups_TB
