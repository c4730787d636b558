"""Rows to train on that hold an evaluation item: its question or its answer, anywhere in them.

How an item is recognised stands in `posttrain.data.steps.sought`. Before rows are looked at, items are planted into
rows of the dataset and sought there: the recall of this very dataset and these very items.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from posttrain.data.config.steps import ContaminationConfig
from posttrain.data.messages import read_message
from posttrain.data.records import SPLITS, EvaluationItem, Record, dataset_type
from posttrain.data.steps.fates import Fate, Finding, Item, StepResult, Surroundings, is_trained_on
from posttrain.data.steps.sought import Index, Sought, holds, index_of
from posttrain.data.steps.texts import texts_of, turns_of
from posttrain.data.steps.words import grams, words
from posttrain.stage.errors import UsageError

PLANTED = 300
"""Items that are planted, at most."""
_MOST = 50
"""Items that are compared with one row, those with the most runs in common first."""


@dataclass(frozen=True)
class Said:
    """What a row says: all of it, and turn by turn."""

    whole: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """An item that a row holds."""

    sought: Sought
    share: float
    """Of its own words."""


def contamination(records: Sequence[Record], knobs: ContaminationConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: one that holds an item drops, and names the item.

    Raises UsageError where too few of the planted items are found again: see `check_recall`.
    """
    carriers = [said_by(record) for record in islice(filter(is_trained_on, records), PLANTED)]
    if not around.items or not carriers:
        return StepResult(map(Fate, records), {"items": len(around.items)})
    index = index_of(around.items, knobs)
    recall = planted_recall(index, around.items, carriers)
    check_recall(recall, knobs.min_recall)
    batches = around.workers.each_batch(partial(_fates, index=index), records)
    facts = {"items": len(around.items), "planted": recall}
    return StepResult((fate for batch in batches for fate in batch), facts)


def _fates(records: Sequence[Record], index: Index) -> list[Fate]:
    found = iter(find_items([said_by(record) for record in records if is_trained_on(record)], index))
    return [_fate(record, next(found) if is_trained_on(record) else None) for record in records]


def check_recall(recall: Mapping[str, Any], min_recall: float) -> None:
    """Raise UsageError where less than ``min_recall`` of what was planted was found."""
    if recall["recall"] < min_recall:
        raise UsageError(
            f"contamination: {recall['found']} of {recall['planted']} planted items were found again, less than "
            f"min_recall={min_recall}; set data.curate.steps.contamination.coverage lower"
        )


def _fate(record: Record, found: Found | None) -> Fate:
    if found is None:
        return Fate(record)
    item = found.sought.item
    lost_to = {"item": item.id, "dataset": item.dataset, "part": found.sought.part, "coverage": round(found.share, 4)}
    return Fate(record, (Finding(f"contaminated_{found.sought.part}", lost_to),), drops=True)


def said_by(record: Record) -> Said:
    """Return what a row says."""
    return Said(texts_of(record).whole(), tuple(turn.content for turn in turns_of(record)))


def find_items(rows: Sequence[Said], index: Index) -> list[Found | None]:
    """Return the item that each row holds, or None."""
    # A turn much longer than every such item is none of them, whatever stands between its words.
    longest = 2 * max((sum(map(len, said)) for said in index.tiny), default=0) + 100
    found: list[Found | None] = [_tiny(row, index, longest) for row in rows]
    texts = [words(row.whole) for row in rows]
    for size, sought_by in index.windows.items():
        runs = grams(texts, size)
        keys = np.fromiter(sought_by, dtype=np.uint64, count=len(sought_by))
        for hit in np.flatnonzero(np.isin(runs.hashes, keys)).tolist():
            row = int(np.searchsorted(runs.starts, hit, side="right")) - 1
            place = hit - int(runs.starts[row])
            for sought in sought_by[int(runs.hashes[hit])]:
                if found[row] is None and tuple(texts[row][place : place + len(sought.said)]) == sought.said:
                    found[row] = Found(sought, 1.0)
    _find_long(texts, index, found)
    return found


def _tiny(row: Said, index: Index, longest: int) -> Found | None:
    if not index.tiny:
        return None
    said = (index.tiny.get(tuple(words(turn))) for turn in row.turns if len(turn) <= longest)
    return next((Found(sought, 1.0) for sought in said if sought is not None), None)


def _find_long(texts: Sequence[Sequence[str]], index: Index, found: list[Found | None]) -> None:
    if not index.long:
        return
    runs = grams(texts, index.gram_words)
    keys = np.sort(np.fromiter(index.long, dtype=np.uint64, count=len(index.long)))
    places = np.minimum(np.searchsorted(keys, runs.hashes), len(keys) - 1)
    hits = np.flatnonzero(keys[places] == runs.hashes)
    rows = np.searchsorted(runs.starts, hits, side="right") - 1
    for row in np.unique(rows).tolist():
        if found[row] is not None:
            continue
        shared: Counter[tuple[str, ...]] = Counter()
        by_said: dict[tuple[str, ...], Sought] = {}
        for gram in np.unique(runs.hashes[hits[rows == row]]).tolist():
            for sought in index.long[gram]:
                shared[sought.said] += 1
                by_said[sought.said] = sought
        for said, _ in shared.most_common(_MOST):
            if (share := holds(texts[row], by_said[said], index.coverage)) is not None:
                found[row] = Found(by_said[said], share)
                break


def planted_recall(index: Index, items: Sequence[Item], rows: Sequence[Said]) -> dict[str, Any]:
    """Return how many of at most `PLANTED` items are found in rows of the dataset into which their prompts are put.

    The items are those with the lowest hash of their ids; each stands in the middle of a row, in capitals every second
    time, and an item that is sought as a whole turn is a turn there.
    """
    chosen = sorted(items, key=lambda item: hashlib.blake2b(item.id.encode()).digest())[:PLANTED]
    chosen = [item for item in chosen if words(item.prompt)]
    planted = []
    for place, item in enumerate(chosen):
        carrier = rows[place % len(rows)].whole
        middle = carrier.find(" ", len(carrier) // 2)
        text = item.prompt.upper() if place % 2 and item.prompt.isascii() else item.prompt
        planted.append(Said(f"{carrier[:middle]}\n{text}\n{carrier[middle:]}", (text,)))
    found = sum(one is not None for one in find_items(planted, index))
    return {"planted": len(chosen), "found": found, "recall": found / len(chosen) if chosen else 1.0}


def read_items(datasets: dict[str, Path]) -> list[Item]:
    """Return the evaluation items of datasets, by the name of the input."""
    return [item for name, directory in datasets.items() for item in _items(name, directory)]


def _items(name: str, directory: Path) -> Iterator[Item]:
    if dataset_type(directory) is not EvaluationItem:
        return
    columns = ["id", "prompt", "reference", "ideal"]
    for split in SPLITS:
        for batch in pq.ParquetFile(directory / f"{split}.parquet").iter_batches(columns=columns):
            for row in batch.to_pylist():
                turns = [read_message(message) for message in row["prompt"]]
                asked = "\n".join(turn.content for turn in turns if turn.role == "user")
                answers = tuple(text for text in (row["reference"], row["ideal"]) if text)
                yield Item(row["id"], name, asked, answers)
