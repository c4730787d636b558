"""Evaluation items as they are sought in rows: how each is recognised, and what finds rows that may hold it.

- An item of fewer than ``least_words`` words is everybody's ("What is it?"): only a turn that says nothing else is it.
- One of fewer than ``long_words`` is sought word by word, anywhere. So is a longer one of which fewer than
  ``least_words`` words are its own; the others stand in quotation marks, or in what three items or more share.
- Any other is sought by runs of ``gram_words`` words: a row that has changed some words still holds it, while one that
  only shares its template, its quotation or its formula does not: see `holds`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from posttrain.data.config.steps import ContaminationConfig
from posttrain.data.steps.fates import Item
from posttrain.data.steps.words import grams, words

SHARED_BY = 3
"""Items from which on a run of words is a template's."""
WINDOW = 12
"""Words by which a text that is sought word by word is found; the rest is compared then."""
MOST_UNFOUND = 3
"""Successive words of an item that a row may lack and still hold it."""
VERIFIED = 3
"""Words of the runs by which an item is compared with a row that may hold it."""
_QUOTED = re.compile(r"“[^”]*”|«[^»]*»|„[^“”]*[“”]|\"[^\"]*\"|(?m:^>.*$)")

Part = Literal["prompt", "answer"]


@dataclass(frozen=True)
class Sought:
    """One text of an item, by its words."""

    item: Item
    part: Part
    said: tuple[str, ...]
    own: tuple[bool, ...]
    """Which words are the item's own: neither quoted nor of a template."""


@dataclass(frozen=True)
class Index:
    """All that is sought."""

    tiny: dict[tuple[str, ...], Sought] = field(default_factory=dict)
    windows: dict[int, dict[int, list[Sought]]] = field(default_factory=dict)
    """Words of a window → its hash → what begins with it."""
    long: dict[int, list[Sought]] = field(default_factory=dict)
    """Run of an item's own words → the items that have it."""
    gram_words: int = 5
    coverage: float = 0.8


def index_of(items: Sequence[Item], knobs: ContaminationConfig) -> Index:
    """Return what finds the prompts of items, and those of their answers that are long."""
    index = Index(gram_words=knobs.gram_words, coverage=knobs.coverage)
    texts: dict[tuple[str, ...], tuple[Item, Part, str]] = {}
    for item in items:
        if asked := tuple(words(item.prompt)):
            texts.setdefault(asked, (item, "prompt", item.prompt))
        for answer in item.answers:
            if len(said := tuple(words(answer))) >= knobs.long_words:
                texts.setdefault(said, (item, "answer", answer))
    found = grams(list(texts), knobs.gram_words)
    runs = [found.of(place).tolist() for place in range(len(texts))]
    shared_by = Counter(gram for own in runs for gram in set(own))
    for (said, (item, part, text)), own_runs in zip(texts.items(), runs, strict=True):
        own = _own(text, said, [shared_by[gram] >= SHARED_BY for gram in own_runs], knobs.gram_words)
        sought = Sought(item, part, said, own)
        if len(said) < knobs.least_words:
            index.tiny[said] = sought
        elif len(said) < knobs.long_words or sum(own) < knobs.least_words:
            _add_window(index, sought)
        else:
            telling = {
                gram
                for place, gram in enumerate(own_runs)
                if shared_by[gram] < SHARED_BY and any(own[place : place + knobs.gram_words])
            }
            for gram in sorted(telling):
                index.long.setdefault(gram, []).append(sought)
    return index


def _add_window(index: Index, sought: Sought) -> None:
    size = min(len(sought.said), WINDOW)
    first = int(grams([sought.said[:size]], size).hashes[0])
    index.windows.setdefault(size, {}).setdefault(first, []).append(sought)


def _own(text: str, said: Sequence[str], shared: Sequence[bool], gram_words: int) -> tuple[bool, ...]:
    quoted = _quoted(text, said)
    template = [
        all(shared[max(0, place - gram_words + 1) : place + 1]) if len(said) >= gram_words else False
        for place in range(len(said))
    ]
    return tuple(not (mark or of_many) for mark, of_many in zip(quoted, template, strict=True))


def _quoted(text: str, said: Sequence[str]) -> list[bool]:
    """Return which words stand in quotation marks, or in lines that are marked as quoted."""
    marks: list[bool] = []
    place = 0
    for match in _QUOTED.finditer(text):
        marks += [False] * len(words(text[place : match.start()]))
        marks += [True] * len(words(match[0]))
        place = match.end()
    marks += [False] * len(words(text[place:]))
    return marks if len(marks) == len(said) else [False] * len(said)


def holds(row: Sequence[str], sought: Sought, coverage: float) -> float | None:
    """Return the share of an item's own words that a row, given as words, has in runs; None where it is not the item.

    It is not the item where the share is below ``coverage``, where it lacks several words in a row or at either end
    (it asks something else of the same text), and where it lacks a number (it is another exercise of the same kind).
    """
    own_runs = grams([sought.said], VERIFIED).hashes
    covered = np.zeros(len(sought.said), dtype=bool)
    for place in np.flatnonzero(np.isin(own_runs, grams([row], VERIFIED).hashes)).tolist():
        covered[place : place + VERIFIED] = True
    own = np.array(sought.own)
    share = float(covered[own].mean())
    lacking = [word for word, mine, found in zip(sought.said, own, covered, strict=True) if mine and not found]
    if share < coverage or any(character.isdigit() for word in lacking for character in word):
        return None
    unfound = own & ~covered
    at_ends = unfound[:MOST_UNFOUND].all() or unfound[-MOST_UNFOUND:].all()
    return None if at_ends or _longest(unfound.tolist()) > MOST_UNFOUND else share


def _longest(flags: Sequence[bool]) -> int:
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest
