"""What a text says, its manner aside: normalised words, the labels that it names, the words that two texts share."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_SIGNS = str.maketrans({"’": "'", "−": "-", "–": "-", "—": "-"})
_MEANT = re.compile(
    r"(?<=\w)[#@&]"  # C#, R&B, a@b
    r"|\+\+|(?<=\w)\+|[<>=+|~×÷±≤≥≠≈∞^%€£¥]|!(?==)"
    r"|(?<=\w)[*/](?=\w)|(?<=\s)[*/](?=\s)"
    r"|(?<!\w)-(?=\.?\d)|(?<=\d)-(?=\d)|(?<=\s)-(?=\s)"
    r"|(?<=\d)[.,](?=\d)|(?<![\w.])\.(?=\d)"
)
"""Marks that change what is said: signs, comparisons, C# and C++, decimals. Others are manner."""
_BEFORE, _BEHIND = r"(?<![\w-])(?<!\d[.,])", r"(?![\w#+])(?![.,]\d)"
"""Where a span begins and ends: not within a word, a number, or the name of C#."""
_SAID = re.compile(
    r"(?:answer|option|choice|antwort|lösung|respuesta|opción|réponse|risposta|resposta|opção)"
    r"(?:\s+(?:is|ist|es|est|è|é))?\W{0,4}([A-Z])(?![\w'’])",
    re.IGNORECASE,
)
_TIGHT = re.compile(r"\s*([<>=+*/|~×÷±≤≥≠≈^!-])\s*")


def normalise(text: str) -> str:
    """Return the text in lower case with single spaces, without the punctuation that means nothing."""
    folded = unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold()
    meant = {found.start() + place for found in _MEANT.finditer(folded) for place in range(len(found[0]))}
    kept = "".join(
        character if place in meant or character == "'" or (character.isalnum() or _combines(character)) else " "
        for place, character in enumerate(folded)
    )
    return " ".join(_TIGHT.sub(r"\1", kept).split())


def _combines(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def exact(response: str, reference: str) -> float:
    """Return 1 when both texts are equal once normalised."""
    return float(normalise(response) == normalise(reference))


def choice(response: str, reference: str) -> float:
    """Return 1 when the response names the first of the reference's labels and no other one."""
    right, *others = reference.split("|")
    return float(named_labels(response, [right, *others]) == {normalise(right)})


def named_labels(response: str, labels: Sequence[str]) -> set[str]:
    """Return which labels a response names, normalised; letters of a multiple choice are told from words.

    ``B. It is a mammal.`` names B: labels that are single capitals count as capitals, and those that are words, as
    the article in ``A mammal`` is, only when nothing else is named.
    """
    if not all(re.fullmatch(r"[A-Z]", label) for label in labels):
        return named_spans(response, labels)
    letters = "".join(labels)
    if re.fullmatch(rf"\W*[{letters}]\W*", response, re.IGNORECASE):
        return {re.sub(r"\W", "", response).casefold()}
    if said := {letter.casefold() for letter in _SAID.findall(response) if letter in letters}:
        return said
    standing = re.findall(rf"(?<![\w'’])(?![AEIOY] \w)([{letters}])(?![\w'’])", response)
    return {letter.casefold() for letter in standing or re.findall(rf"(?<![\w'’])([{letters}])(?![\w'’])", response)}


def named_spans(response: str, spans: Iterable[str]) -> set[str]:
    """Return which spans occur in the response as whole words; a span within a longer one does not count."""
    wanted = sorted(filter(None, map(normalise, spans)), key=len, reverse=True)
    if not wanted:
        return set()
    return set(re.findall(rf"{_BEFORE}(?:{'|'.join(map(re.escape, wanted))}){_BEHIND}", normalise(response)))


def token_f1(response: str, reference: str) -> float:
    """Return the F1 score of the words that both texts have, normalised (Rajpurkar et al. 2016).

    Words of scripts without spaces are single characters. Two empty texts share everything.
    """
    ours, theirs = Counter(_words(response)), Counter(_words(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total())


def _words(text: str) -> list[str]:
    return re.findall(
        r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\s\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+", normalise(text)
    )
