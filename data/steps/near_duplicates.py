"""Rows that say nearly what an earlier row says.

MinHash names candidates; a row drops only where the true Jaccard similarity of its runs of words with a row *that
stays* reaches the threshold, so that no chain of small changes takes out a row unlike any that is left. Rows of one
template are told apart: prompt and answers must each share most of their words, and numbers must be the same. What two
annotators say of the same answers is two pieces of evidence.

Held-out rows come first, then the order of the dataset: a row to train on loses to its near duplicate in eval.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from posttrain.data.config.steps import NearDuplicateConfig
from posttrain.data.records import EvaluationItem, Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings
from posttrain.data.steps.minhash import HASHES, Prints, fingerprint, joined, shared_bands, shingles
from posttrain.data.steps.texts import Texts, texts_of
from posttrain.data.steps.words import words
from posttrain.stage import heartbeat

SLACK = 0.15
"""How far the estimate from all hashes may lie below the threshold: four standard deviations at 0.8."""
MOST = 200
"""Pairs that are looked at for one row, the most similar by the estimate first: rows of one template are many."""
REMEMBERED = 4096
"""Sets of runs that are kept for further comparisons; all of a large dataset would not fit."""
_NOT_COMPARED = 2
Runs = Callable[[int], frozenset[int]]
Alike = Callable[[int, int], bool]


def near_duplicates(records: Sequence[Record], knobs: NearDuplicateConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: near duplicates drop, and name the row that stays and the similarity."""
    parts: list[Prints] = []
    ranked = array("b")
    for batch in around.workers.each_batch(partial(_looked_at, shingle_words=knobs.shingle_words), records):
        parts.append(batch.prints)
        ranked.extend(batch.ranks)
    prints, ranks = joined(parts), np.asarray(ranked)
    order = np.argsort(ranks, kind="stable")[: int((ranks < _NOT_COMPARED).sum())].tolist()

    def alike(one: int, other: int) -> bool:
        if getattr(records[one], "annotator", None) != getattr(records[other], "annotator", None):
            return False
        left, right = texts_of(records[one]), texts_of(records[other])
        return same_matter(left, right, knobs.part_overlap, knobs.spare_other_numbers)

    @lru_cache(REMEMBERED)
    def runs(place: int) -> frozenset[int]:
        return shingles(texts_of(records[place]).whole(), knobs.shingle_words)

    lost = lost_to(prints, order, knobs.threshold, runs, alike)

    def fate(place: int, record: Record) -> Fate:
        if place not in lost:
            return Fate(record)
        keeper, similarity = lost[place]
        across = record.split == "train" and records[keeper].split == "eval"
        reason = "near_duplicate_of_held_out" if across else "near_duplicate"
        found = Finding(reason, {"id": records[keeper].id, "jaccard": round(similarity, 4)})
        return Fate(record, (found,), drops=True)

    return StepResult(fate(place, record) for place, record in enumerate(records))


@dataclass(frozen=True)
class _Looked:
    """What is known of the rows of a batch before they are compared."""

    prints: Prints
    ranks: list[int]
    """Held-out rows come before those to train on; evaluation items are not compared."""


def _looked_at(records: Sequence[Record], shingle_words: int) -> _Looked:
    ranks = [_NOT_COMPARED if isinstance(one, EvaluationItem) else int(one.split != "eval") for one in records]
    return _Looked(fingerprint([texts_of(record).whole() for record in records], shingle_words), ranks)


def lost_to(
    prints: Prints, order: Sequence[int], threshold: float, runs: Runs, alike: Alike
) -> dict[int, tuple[int, float]]:
    """Return the texts that drop: each with the text that stays and is most like it, and how much.

    Texts come in ``order``, and stay unless they lose to one that stayed before. ``runs`` gives the set of runs of
    words of a text that is compared, and ``alike`` has the last word on a pair whose similarity reaches ``threshold``.
    """
    groups_TB = shared_bands(prints)
    signatures_TH = prints.signatures
    staying: dict[int, list[int]] = {}
    lost: dict[int, tuple[int, float]] = {}
    for text in order:
        groups = groups_TB[text][groups_TB[text] >= 0].tolist()
        if not groups:
            continue
        heartbeat.pulse()
        candidates = list(dict.fromkeys(other for group in groups for other in staying.get(group, ())))
        same = (signatures_TH[candidates] == signatures_TH[text]).sum(axis=1) if candidates else np.zeros(0)
        nearest = np.argsort(-same, kind="stable")[:MOST]
        own: frozenset[int] | None = None
        for place in nearest[same[nearest] >= (threshold - SLACK) * HASHES].tolist():
            other = candidates[place]
            own = own or runs(text)
            similarity = jaccard(own, runs(other))
            if similarity >= threshold and alike(text, other):
                lost[text] = (other, similarity)
                break
        else:
            for group in groups:
                staying.setdefault(group, []).append(text)
    return lost


def jaccard(one: frozenset[int] | frozenset[str], other: frozenset[int] | frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets; two empty ones are the same."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def same_matter(one: Texts, other: Texts, part_overlap: float, spare_other_numbers: bool) -> bool:
    """Return whether two texts of high similarity also agree in each part: in prompt and answers, and in numbers."""
    if len(one.answers) != len(other.answers):
        return False
    for left, right in zip((one.prompt, *one.answers), (other.prompt, *other.answers), strict=True):
        words_left, words_right = words(left), words(right)
        if jaccard(frozenset(words_left), frozenset(words_right)) < part_overlap:
            return False
        if spare_other_numbers and _numbers(words_left) != _numbers(words_right):
            return False
    return True


def _numbers(found: Sequence[str]) -> Counter[str]:
    return Counter(word for word in found if word[0].isdigit())
