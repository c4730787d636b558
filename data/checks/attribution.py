"""Quoted support must stand in the passages given: find each quote, letter for letter or but for its manner of writing.

A quote may differ from its passage in case, spacing, punctuation, quotation marks and compatibility characters, and may
leave words out where it says so (``…`` or ``...``); it may not differ in any word, number or sign of a number, nor
begin or end within a word. What such a quote supports is still for the reader to judge: the check is that nothing was
made up, not that it follows.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Sequence

_QUOTED = re.compile(r"“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»|\"([^\"]+)\"|「([^「」]+)」")
_ELLIPSIS = re.compile(r"\[?(?:…|\.{3,}|(?:\. ){2,}\.)\]?")
# A number with its sign and separators is one word; so is each character of scripts that put no spaces between words.
_WORD = re.compile(r"(?<!\w)[-−]?\d+(?:[.,]\d+)*(?!\w)|[぀-ヿ㐀-䶿一-鿿]|[^\W_぀-ヿ㐀-䶿一-鿿]+(?:['’][^\W\d_]+)*")


@dataclasses.dataclass(frozen=True)
class Support:
    """Where a quote, or a part of one, stands."""

    passage: int
    """Index of the passage."""
    start: int
    end: int
    """Characters of the passage."""
    exact: bool
    """Whether it stands there letter for letter."""


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The quotes of a response, and which of them stand in the passages."""

    supported: dict[str, list[Support]]
    unsupported: list[str]

    @property
    def holds(self) -> bool:
        """Whether there is a quote, and every one stands in the passages."""
        return bool(self.supported) and not self.unsupported


def attribute(response: str, passages: Sequence[str]) -> Attribution:
    """Return where the quotes of a response stand in the passages."""
    found = {quote: find_quote(quote, passages) for quote in quotes_of(response)}
    return Attribution(
        {q: where for q, where in found.items() if where}, [q for q, where in found.items() if not where]
    )


def quotes_of(text: str) -> list[str]:
    """Return what stands in double quotation marks (“…”, „…“, «…», "…", 「…」), each once, in order."""
    quoted = ("".join(match.groups(default="")) for match in _QUOTED.finditer(text))
    return list(dict.fromkeys(quote.strip() for quote in quoted if quote.strip()))


def find_quote(quote: str, passages: Sequence[str]) -> list[Support]:
    """Return where a quote stands: one place for each of its parts, in order and in one passage; empty when nowhere.

    A passage that has it letter for letter goes before one that has it only but for the manner of writing.
    """
    parts = [part for part in (words_of(text) for text in _ELLIPSIS.split(quote)) if part]
    if not parts:
        return []
    texts = [text.strip() for text in _ELLIPSIS.split(quote) if words_of(text)]
    candidates = []
    for index, passage in enumerate(passages):
        places = _find_in_order(parts, words_of(passage))
        if places:
            exact = [_stands_at(text, passage, start, end) for text, (start, end) in zip(texts, places, strict=True)]
            candidates.append(
                [Support(index, start, end, is_exact) for (start, end), is_exact in zip(places, exact, strict=True)]
            )
    return max(candidates, key=lambda supports: sum(support.exact for support in supports), default=[])


@dataclasses.dataclass(frozen=True)
class Word:
    """One word of a text, as quotes are compared by."""

    text: str
    """In one manner of writing."""
    start: int
    end: int
    """Characters of the text."""


@functools.lru_cache(maxsize=8192)
def words_of(text: str) -> tuple[Word, ...]:
    """Return the words of a text: numbers with their signs, and single characters of scripts without spaces."""
    return tuple(Word(_fold(match[0]), match.start(), match.end()) for match in _WORD.finditer(text))


def _fold(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold().replace("’", "'").replace("−", "-")


def _find_in_order(parts: Sequence[Sequence[Word]], words: Sequence[Word]) -> list[tuple[int, int]]:
    """Return the characters of each part, the first place of each after the one before; empty unless all are there."""
    places: list[tuple[int, int]] = []
    begin = 0
    for part in parts:
        wanted = [word.text for word in part]
        starts = range(begin, len(words) - len(wanted) + 1)
        at = next((i for i in starts if [w.text for w in words[i : i + len(wanted)]] == wanted), None)
        if at is None:
            return []
        begin = at + len(wanted)
        places.append((words[at].start, words[begin - 1].end))
    return places


def _stands_at(text: str, passage: str, start: int, end: int) -> bool:
    """Return whether a text's words stand letter for letter between two characters of a passage."""
    found = words_of(text)
    return text[found[0].start : found[-1].end] == passage[start:end]
