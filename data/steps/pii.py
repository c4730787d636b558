"""Personal data and secrets become placeholders, or take their row out. Nothing that was found is written anywhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from posttrain.data.config.steps import PiiConfig, PiiType
from posttrain.data.records import EvaluationItem, Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings
from posttrain.data.steps.pii_patterns import find
from posttrain.data.steps.texts import rewritten, values_rewritten

_PLACEHOLDER = re.compile(r"\[([A-Z]+(?:_[A-Z]+)*)_(\d{1,6})\]")


class Placeholders:
    """What stands for what in one row: the same placeholder for the same thing, in all of its turns."""

    def __init__(self, types: Iterable[PiiType]) -> None:
        self._types = frozenset(types)
        self._named: dict[tuple[str, str], str] = {}
        self._taken: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        """Places found, by type."""

    def heed(self, text: str) -> str:
        """Return the text as it is, having noted the placeholders that it brings: no new one is taken for them."""
        for kind, number in _PLACEHOLDER.findall(text):
            self._taken[kind] = max(self._taken[kind], int(number))
        return text

    def replace(self, text: str) -> str:
        """Return the text with placeholders."""
        made, place = [], 0
        for start, end, kind in find(text, self._types):
            made += [text[place:start], self._name(kind, text[start:end])]
            self.counts[kind] += 1
            place = end
        return "".join([*made, text[place:]]) if made else text

    def _name(self, kind: PiiType, found: str) -> str:
        upper = kind.upper()
        same = re.sub(r"[\s().-]", "", found).casefold() if kind not in ("email", "key", "ip") else found.casefold()
        if (upper, same) not in self._named:
            self._taken[upper] += 1
            self._named[upper, same] = f"[{upper}_{self._taken[upper]}]"
        return self._named[upper, same]


def pii(records: Sequence[Record], knobs: PiiConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: it goes on with placeholders, or drops; evaluation items are left alone."""
    batches = around.workers.each_batch(partial(_fates, types=knobs.types, drop=knobs.on_found == "drop"), records)
    return StepResult(fate for batch in batches for fate in batch)


def _fates(records: Sequence[Record], types: Sequence[PiiType], drop: bool) -> list[Fate]:
    return [_fate(record, types, drop) for record in records]


def _fate(record: Record, types: Sequence[PiiType], drop: bool) -> Fate:
    if isinstance(record, EvaluationItem):
        return Fate(record)
    cleaned, counts = redacted(record, types)
    if not counts:
        return Fate(record)
    findings = tuple(Finding(f"pii_{kind}", {"places": places}) for kind, places in sorted(counts.items()))
    return Fate(record, findings, drops=drop, changed=cleaned)


def redacted(record: Record, types: Iterable[PiiType]) -> tuple[Record, Counter[str]]:
    """Return the record with placeholders, and how many places of each type were found in it."""
    placeholders = Placeholders(types)
    rewritten(record, placeholders.heed)
    return rewritten(record, placeholders.replace), placeholders.counts


def redacted_values(value: Any, types: Iterable[PiiType]) -> Any:
    """Return a JSON value with placeholders in its texts."""
    return values_rewritten(value, Placeholders(types).replace)
