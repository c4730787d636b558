"""Documents cut into passages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from posttrain.data.checks.attribution import words_of

_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCES = re.compile(r"(?<=[.!?…。！？])[\"”»’')\]]*\s*")


def passages_in(text: str, max_words: int) -> Iterator[str]:
    """Yield the passages of a text: as many whole paragraphs as have ``max_words`` words together.

    A longer paragraph is cut behind its sentences, and a longer sentence behind its words. Nothing is left out.
    """
    for parts in _joined(_pieces(text, max_words), max_words):
        yield " ".join(parts) if len(parts) > 1 else parts[0]


def _pieces(text: str, max_words: int) -> Iterator[str]:
    for paragraph in filter(str.strip, _PARAGRAPHS.split(text)):
        if _length(paragraph) <= max_words:
            yield paragraph.strip()
            continue
        for sentence in _ends(paragraph):
            yield from _by_words(sentence, max_words)


def _ends(paragraph: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCES.finditer(paragraph):
        if match.end() > start and paragraph[start : match.end()].strip():
            yield paragraph[start : match.end()].strip()
            start = match.end()
    if paragraph[start:].strip():
        yield paragraph[start:].strip()


def _by_words(sentence: str, max_words: int) -> Iterator[str]:
    starts = [word.start for word in words_of(sentence)][::max_words]
    bounds = [0, *starts[1:], len(sentence)]
    for start, end in pairwise(bounds):
        yield sentence[start:end].strip()


def _joined(pieces: Iterator[str], max_words: int) -> Iterator[list[str]]:
    held: list[str] = []
    length = 0
    for piece in pieces:
        own = _length(piece)
        if held and length + own > max_words:
            yield held
            held, length = [], 0
        held.append(piece)
        length += own
    if held:
        yield held


def _length(text: str) -> int:
    return len(words_of(text))
