"""BM25 (Robertson & Zaragoza 2009) over passages, as Lucene weighs it: exact, and the same on every machine.

N passages, V words of theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix

from posttrain.data.checks.attribution import words_of


class Found(NamedTuple):
    """A passage that shares words with a question."""

    passage: int
    score: float


class Bm25:
    """Passages, ready to be searched.

    score(q, p) = Σ over the words w of q of idf(w) · tf / (tf + k1 · (1 − b + b · |p| / mean length)), where tf counts
    w in p, and idf(w) = ln(1 + (N − n + 0.5) / (n + 0.5)) of the n passages that have w.
    """

    def __init__(self, passages: Sequence[str], k1: float, b: float) -> None:
        self._vocabulary: dict[str, int] = {}
        words, places, counts, lengths = [], [], [], []
        for place, passage in enumerate(passages):
            found = Counter(word.text for word in words_of(passage))
            lengths.append(found.total())
            for word, count in found.items():
                words.append(self._vocabulary.setdefault(word, len(self._vocabulary)))
                places.append(place)
                counts.append(count)
        shape = (len(passages), len(self._vocabulary))
        counts_NV = csc_matrix((np.array(counts, dtype=np.float64), (places, words)), shape=shape)
        with_word_V = np.diff(counts_NV.indptr)
        idf_V = np.log1p((len(passages) - with_word_V + 0.5) / (with_word_V + 0.5))
        lengths_N = np.array(lengths, dtype=np.float64)
        norm_N = k1 * (1 - b + b * lengths_N / max(float(lengths_N.mean()), 1.0))
        counts_NV.data *= np.repeat(idf_V, with_word_V) / (counts_NV.data + norm_N[counts_NV.indices])
        self._weights_NV = counts_NV

    def search(self, question: str, most: int) -> list[Found]:
        """Return at most ``most`` passages that share a word with a question, best first, the earlier of those alike.

        A word that the question repeats counts as often.
        """
        weights, starts = self._weights_NV, self._weights_NV.indptr
        scores_N: NDArray[np.float64] = np.zeros(weights.shape[0])
        # In the order of their columns, since a sum depends on it.
        asked = Counter(self._vocabulary[w.text] for w in words_of(question) if w.text in self._vocabulary)
        for word, count in sorted(asked.items()):
            column = slice(starts[word], starts[word + 1])
            scores_N[weights.indices[column]] += count * weights.data[column]
        sharing = np.flatnonzero(scores_N)
        best = sharing[np.lexsort((sharing, -scores_N[sharing]))][:most]
        return [Found(int(place), float(scores_N[place])) for place in best]
