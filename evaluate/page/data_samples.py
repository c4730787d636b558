"""Rows that dropped, changed or were noted, drawn for each reason, beside what they lost to."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from posttrain.data.records import SPLITS, Record, each_record
from posttrain.data.steps.trail import read_trail, row_of, said
from posttrain.evaluate.page.data_flow import Event
from posttrain.evaluate.page.templates import clip

Parts = list[tuple[str, bool]]
"""A text in pieces, and whether the other text lacks each."""

PII = "pii_"
"""What reasons of personal data start with."""
NEARBY = 60
"""Characters shown on either side of a placeholder."""
_PLACEHOLDER = re.compile(r"\[(?:EMAIL|PHONE|CARD|IBAN|IP|KEY|NATIONAL_ID)_\d+\]")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One row, and what became of it."""

    id: str
    what: str
    lost_to: dict[str, Any]
    text: Parts
    """What the row says; of a changed one only what surrounds its placeholders."""
    other: Parts | None
    """What the row that stays says, where it lost to one."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What the trail of a dataset says."""

    events: Counter[Event]
    places: Counter[tuple[str, str]]
    """(Type of personal data, source) → places in rows."""
    samples: dict[tuple[str, str], list[Sample]]
    """By step and reason."""


def drawn(directory: Path, record_type: type[Record], most: int, seed: int) -> Told:
    """Return how often each thing happened to rows of a dataset, and up to ``most`` samples by step and reason.

    Which rows are drawn follows from the seed and their ids alone.
    """
    events: Counter[Event] = Counter()
    places: Counter[tuple[str, str]] = Counter()
    chosen: dict[tuple[str, str], list[tuple[bytes, int, dict[str, Any]]]] = {}
    for number, entry in enumerate(read_trail(directory)):
        events[entry["step"], entry["what"], entry["reason"], entry["source"]] += 1
        if entry["reason"].startswith(PII):
            places[entry["reason"].removeprefix(PII), entry["source"]] += entry["lost_to"]["places"]
        own = chosen.setdefault((entry["step"], entry["reason"]), [])
        drawing = hashlib.blake2b(f"{seed}/{entry['id']}".encode(), digest_size=8).digest()
        insort(own, (drawing, number, entry))
        del own[most:]
    entries = {key: [entry for *_, entry in own] for key, own in chosen.items()}
    texts = _texts(directory, record_type, [entry for own in entries.values() for entry in own])
    samples = {key: [_sample(entry, texts) for entry in own] for key, own in entries.items()}
    return Told(events, places, {key: own for key, own in samples.items() if own})


def _texts(directory: Path, record_type: type[Record], entries: list[dict[str, Any]]) -> dict[str, str]:
    """Return by id what the rows say that entries name: rows that stay, and rows that dropped later."""
    wanted = {entry["id"] for entry in entries} | {entry["lost_to"].get("id") for entry in entries}
    found = {
        record.id: said(row_of(record))
        for split in SPLITS
        for record in each_record(directory / f"{split}.parquet", record_type)
        if record.id in wanted
    }
    if any(name is not None and name not in found for name in wanted):
        dropped = (entry for entry in read_trail(directory) if entry["id"] in wanted and "row" in entry)
        found = {entry["id"]: said(entry["row"]) for entry in dropped} | found
    return found


def _sample(entry: dict[str, Any], texts: dict[str, str]) -> Sample:
    own = said(entry["row"]) if "row" in entry else texts.get(entry["id"], "")
    if entry["what"] == "changed" and _PLACEHOLDER.search(own):
        text: Parts = list(surroundings(own))
    else:
        text = [(clip(own), False)]
    other = texts.get(entry["lost_to"].get("id", ""))
    if other is None:
        return Sample(entry["id"], entry["what"], entry["lost_to"], text, None)
    left, right = differences(clip(own), clip(other))
    return Sample(entry["id"], entry["what"], entry["lost_to"], left, right)


def surroundings(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the placeholders of a text, as set apart, with what stands around them."""
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        start = max(end, match.start() - NEARBY)
        yield (" … " if start > end else "") + text[start : match.start()], False
        yield match.group(), True
        end = match.end()
    yield text[end : end + NEARBY] + (" …" if len(text) > end + NEARBY else ""), False


def differences(one: str, other: str) -> tuple[Parts, Parts]:
    """Return two texts in pieces of whole words, each piece with whether the other text lacks it."""
    left, right = re.findall(r"\s+|\S+", one), re.findall(r"\s+|\S+", other)
    parts: tuple[Parts, Parts] = ([], [])
    for what, *places in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        pieces = "".join(left[places[0] : places[1]]), "".join(right[places[2] : places[3]])
        for side, piece in zip(parts, pieces, strict=True):
            side.extend([(piece, what != "equal")] if piece else [])
    return parts
