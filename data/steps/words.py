"""The words of a text as steps compare them, and hashes of runs of words.

Two texts that differ in case, punctuation, width or spacing have the same words. In scripts that put no spaces between
words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) each character counts as a word, so that runs of words are
runs of characters there; combining marks of other scripts stay with their letters. Operators are words: 3 + 4 is not
3 - 4.

Shapes: N, words of all texts together; T, texts; G, runs of words (grams).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_OPERATORS = r"+*/=^<>%&|~$@#\\±×÷≤≥≠√∑∫"
_MARKS = (
    r"\x00-\x1f\x7f!\"'(),.:;?\[\]`{}\-\u0080-\u00a9\u00ab-\u00b0\u00b4\u00b6-\u00b8\u00bb\u00bf"
    r"\u0964\u0965\u060c\u061b\u061f\u06d4\u2000-\u206f\u3000-\u3004\u3008-\u3020\ufe30-\ufe4f\ufeff"
)
_NUMBER = r"[0-9]+(?:[.,][0-9]+)*"
_MINUS = r"-(?=[\s0-9]|\Z)"
_ASCII = re.compile(rf"{_NUMBER}|[a-z_][a-z0-9_]*|[{_OPERATORS}]|{_MINUS}")
_ANY = re.compile(rf"{_NUMBER}|[{_UNSPACED}]|[^\s{_MARKS}{_OPERATORS}{_UNSPACED}]+|[{_OPERATORS}]|{_MINUS}")
_INTRICATE = re.compile(rf"[0-9{_OPERATORS}]|-(?:\s|\Z)")
"""What plain splitting would get wrong."""
_SPACES = str.maketrans({chr(c): " " for c in range(128) if not (chr(c).isalnum() or chr(c) == "_")})
_PLAIN = str.maketrans({"−": "-", "‐": "-", "‑": "-"})

_REMEMBERED = 1_000_000
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def words(text: str) -> list[str]:
    """Return the words of a text, folded; see the module for what counts as one."""
    if text.isascii():
        if _INTRICATE.search(text) is None:
            return text.lower().translate(_SPACES).split()
        return _ASCII.findall(text.lower())
    return _ANY.findall(unicodedata.normalize("NFKC", text).casefold().translate(_PLAIN))


class _Known(dict[str, int]):
    """Word → its hash, the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        self[word] = value
        return value


_known = _Known()


def word_hashes(found: Sequence[str]) -> Hashes:
    """Return one hash for each word."""
    return np.fromiter(map(_known.__getitem__, found), dtype=np.uint64, count=len(found))


@dataclass(frozen=True)
class Grams:
    """Hashes of the runs of n words of several texts, text by text in order."""

    hashes: Hashes
    """[G]"""
    starts: Places
    """[T]: where the runs of each text begin."""

    def of(self, text: int) -> Hashes:
        """Return those of one text."""
        end = self.starts[text + 1] if text + 1 < len(self.starts) else len(self.hashes)
        return self.hashes[self.starts[text] : end]


def grams(texts: Sequence[Sequence[str]], n: int) -> Grams:
    """Return the runs of ``n`` words of each text, given as words; a shorter text is one run, an empty one has none."""
    lengths_T = np.array([len(found) for found in texts], dtype=np.int64)
    padded_T = np.where(lengths_T == 0, 0, np.maximum(lengths_T, n))
    words_N = np.zeros(int(padded_T.sum()), dtype=np.uint64)
    place = 0
    for found, padded in zip(texts, padded_T.tolist(), strict=True):
        words_N[place : place + len(found)] = word_hashes(found)
        place += padded
    runs_N = runs(words_N, n)
    counts_T = np.where(lengths_T == 0, 0, padded_T - n + 1)
    ends_T = np.cumsum(padded_T)
    first_T = ends_T - padded_T
    starts = np.cumsum(counts_T) - counts_T
    within_G = np.arange(int(counts_T.sum()), dtype=np.int64) - np.repeat(starts, counts_T)
    return Grams(runs_N[np.repeat(first_T, counts_T) + within_G], starts)


def runs(words_N: Hashes, n: int) -> Hashes:
    """Return a hash of each run of ``n`` successive words, none where there are fewer."""
    count = len(words_N) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total_G = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        total_G *= _BASE
        total_G += words_N[offset : offset + count]
    return mixed(total_G)


def mixed(values: Hashes) -> Hashes:
    """Return values whose bits all depend on all bits of what came in (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
