"""How much of what a response claims stands in what it was given: its quotes, numbers and proper names.

Only such claims can be checked without understanding the text. A claim that stands in a passage may still be put to a
wrong use; one that stands nowhere was made up, or worked out. So the measure fits answers that must come from passages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.data.checks.attribution import find_quote, quotes_of

_POSSESSIVE = re.compile(r"['’]s(?!\w)")
_LIST_NUMBER = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
MARKER = re.compile(r"\[(\d{1,4})\]")
"""Cites a passage by its number."""
_NUMBER = re.compile(r"(?<!\w)[-−]?\d+(?:[.,]\d+)*(?!\w)")
_SENTENCE = re.compile(r"[.!?…:;]+[\"”»')\]*]*\s+|\n+")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")


def grounded_share(response: str, passages: Sequence[str]) -> float:
    """Return the share of a response's distinct claims that stand in the passages; 1 where it claims nothing.

    A quote must be found as `posttrain.data.checks.attribution` demands, a number or a name as whole words.
    """
    quotes, others = claims_of(response)
    plain = [_POSSESSIVE.sub("", passage) for passage in passages]
    found = [bool(find_quote(quote, passages)) for quote in quotes]
    found += [bool(find_quote(claim, plain)) for claim in others]
    return sum(found) / len(found) if found else 1.0


def claims_of(text: str) -> tuple[list[str], list[str]]:
    """Return what of a text can be checked, each once: its quotes, and the numbers and names outside them.

    Numbers of list items and of cited passages are none. A name is a run of capitalised words; the first word of a
    sentence is left out, since it is always capitalised, and so is the word "I". In German all nouns count.
    """
    quotes = quotes_of(text)
    for quote in quotes:
        text = text.replace(quote, " ")
    text = _POSSESSIVE.sub("", MARKER.sub(" ", _LIST_NUMBER.sub(" ", text)))
    names = [name for sentence in _SENTENCE.split(text) for name in _names(sentence)]
    return quotes, list(dict.fromkeys([*_NUMBER.findall(text), *names]))


def _names(sentence: str) -> list[str]:
    """Return the runs of capitalised words with nothing but a space between them."""
    names: list[str] = []
    end = None
    for word in list(_WORD.finditer(sentence))[1:]:
        if not word[0][0].isupper() or word[0] == "I":
            continue
        if end is not None and sentence[end : word.start()] == " ":
            names[-1] += f" {word[0]}"
        else:
            names.append(word[0])
        end = word.end()
    return names
