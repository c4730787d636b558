"""The shortest ending of a document that a grammar has begun, in bytes and in tokens.

A grammar says which bytes may come next, not how far the end is. The search here walks its states by single bytes,
nearest first; a tokenizer then covers the bytes found with as few tokens as it can.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

END = 256
"""The token of the byte vocabulary that ends a document."""
_WIDE = 32
"""More bytes than this are free text: one of each kind then stands for all."""
_HOPS = 4
"""How far two states must look alike to be taken for one."""

_CLOSING = (b'"', b"}", b"]")
_OFTEN = 64
"""How often a byte is taken in one place before others are preferred."""
_TRIED = 24
"""Parts of a long ending that are tried from either side."""

Look = tuple[tuple[bytes, bytes], ...]
"""For a state and a few after it: the mask of what may follow, and the bytes that must."""


class _Bytes:
    """A tokenizer of single bytes, of the shape that llguidance asks for."""

    is_tokenizer_wrapper = True
    tokens = [*(bytes([byte]) for byte in range(256)), b"<|end|>"]
    eos_token_id = END
    bos_token_id = None
    special_token_ids = [END]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


BYTES = LLTokenizer(_Bytes(), slices=[])  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A model's tokens as bytes, and as llguidance sees them. Making one takes about a second: share it."""

    tokenizer: LLTokenizer
    pieces: list[bytes]
    """The bytes of each token, empty for special ones."""
    token_of: dict[bytes, int]
    longest: int
    """Bytes of the longest token."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] | None = None) -> Vocabulary:
        """Return the vocabulary of a fast tokenizer; ``ends`` are the tokens that end a response, by default EOS."""
        stops = list(ends) if ends is not None else [tokenizer.eos_token_id]
        grammar_tokenizer = from_tokenizer(tokenizer, eos_token=stops)
        special = {*tokenizer.all_special_ids, *stops}
        pieces = [
            b"" if token in special else grammar_tokenizer.decode_bytes([token])
            for token in range(grammar_tokenizer.vocab_size)
        ]
        token_of = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}
        return cls(grammar_tokenizer, pieces, token_of, max(map(len, token_of)))

    @property
    def ends(self) -> list[int]:
        """The tokens that end a document."""
        return self.tokenizer.eos_tokens

    @functools.cached_property
    def preferred(self) -> dict[int, int]:
        """A rank for each byte that is a token of its own: first those that come in long runs as one token."""
        singles = [piece[0] for piece in self.token_of if len(piece) == 1]
        runs = {
            byte: max(n for n in range(1, self.longest + 1) if bytes([byte]) * n in self.token_of) for byte in singles
        }
        return {byte: -run for byte, run in runs.items()}

    def text(self, tokens: Iterable[int]) -> str:
        """Return what tokens say, byte for byte, special tokens left out."""
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")

    def segment(self, text: bytes) -> list[int] | None:
        """Return the fewest tokens that spell a text, or None where the vocabulary lacks a byte of it."""
        count: list[int | None] = [None] * len(text) + [0]
        taken = [0] * len(text)
        for start in reversed(range(len(text))):
            for stop in range(start + 1, min(start + self.longest, len(text)) + 1):
                rest = count[stop]
                if rest is not None and text[start:stop] in self.token_of:
                    best = count[start]
                    if best is None or rest + 1 < best:
                        count[start], taken[start] = rest + 1, stop
        if count[0] is None:
            return None
        tokens, start = [], 0
        while start < len(text):
            tokens.append(self.token_of[text[start : taken[start]]])
            start = taken[start]
        return tokens


def closes(state: LLMatcher, ending: bytes) -> bool:
    """Return whether ``ending`` makes a whole document of what ``state`` has seen."""
    if not ending:
        return state.is_accepting()
    return state.validate_tokens([*ending, END]) == len(ending) + 1


def endings(
    state: LLMatcher, known: bytes | None, preferred: Mapping[int, int], max_states: int, max_length: int
) -> Iterator[bytes]:
    """Yield texts that end the document of a byte matcher, the shortest first (Dijkstra's search).

    ``preferred`` ranks the bytes that may be used, the best first: see `Vocabulary.preferred`. ``known`` is an ending
    of an earlier state. Whatever leads to a state that it ends, or its last bytes, is taken as found, which saves
    looking for the ends of all that was open then. Of states as far from the start, after as many items, that look
    alike only the first is followed, so an ending is always valid, and the shortest but for unusual grammars.
    """
    order = itertools.count()
    heap: list[tuple[int, int, bytes, LLMatcher, Look]] = [(0, next(order), b"", state, look_of(state))]
    seen: set[tuple[int, int, str, Look]] = set()
    while heap and len(seen) < max_states:
        _, _, text, at, look = heapq.heappop(heap)
        if closes(at, b""):
            yield text
        elif known and (ending := last_of(known, at)):
            yield text + ending
        for step, after, its_look in _children(at, look, preferred):
            way = text + step
            key = (len(way), way.count(b","), _class(step), its_look)
            if key not in seen and len(way) <= max_length:
                seen.add(key)
                heapq.heappush(heap, (len(way), next(order), way, after, its_look))


def straight_ending(state: LLMatcher, preferred: Mapping[int, int], max_length: int) -> bytes | None:
    """Return an ending found by going straight on, or None: in time linear in its length, where a search is far off.

    Of the bytes that may come, those that close something go first, then those after which something else may come
    than before; a byte that was taken often in the same place gives way to others, so that no loop holds for ever.
    """
    state, text, before, last = state.deep_copy(), b"", b"", b""
    taken: Counter[tuple[bytes, bytes]] = Counter()
    while len(text) <= max_length:
        if closes(state, b""):
            return text
        mask, step = state.compute_bitmask(), state.compute_ff_bytes()
        if not step and mask == before and taken[mask, last] % _OFTEN:
            step = last
        elif not step:
            step = min(
                _steps(_choices(mask), preferred),
                key=lambda step: _detour(state, mask, step, taken[mask, step]),
                default=b"",
            )
        if not step or not preferred.keys() >= set(step) or not state.consume_tokens(list(step)):
            return None
        taken[mask, step] += 1
        text, before, last = text + step, mask, step
    return None


def _detour(state: LLMatcher, mask: bytes, step: bytes, times: int) -> int:
    """Return how far from the end a step seems to lead: the less the better."""
    state.consume_tokens(list(step))
    same = state.compute_bitmask() == mask
    state.rollback(1)
    return 2 + times // _OFTEN if same else times // (_OFTEN * _OFTEN) + (step not in _CLOSING)


def last_of(known: bytes, state: LLMatcher) -> bytes | None:
    """Return the last part of a known ending that ends a state, if there is one: the shortest, unless it is long."""
    firsts = _choices(state.compute_bitmask())
    starts = [start for start in reversed(range(len(known))) if known[start] in firsts]
    if len(starts) > 2 * _TRIED:  # each takes time linear in its length: what is left of it, or little is
        starts = [*reversed(starts[-_TRIED:]), *starts[:_TRIED]]
    return next((known[start:] for start in starts if closes(state, known[start:])), None)


def _children(state: LLMatcher, look: Look, preferred: Mapping[int, int]) -> list[tuple[bytes, LLMatcher, Look]]:
    """Return what may follow a state: the bytes, the state after them, and its look.

    Bytes that change nothing, such as one more letter of a string, are left out where others do; where none does, one
    of each class goes on, since the change may come later.
    """
    forced = state.compute_ff_bytes()
    if not preferred.keys() >= set(forced):
        return []
    children = []
    for step in [forced] if forced else _steps(_choices(state.compute_bitmask()), preferred):
        after = state.deep_copy()
        after.consume_tokens(list(step))
        children.append((step, after, look_of(after)))
    others = [child for child in children if child[2] != look]
    return others or list({_class(child[0]): child for child in reversed(children)}.values())[::-1]


def look_of(state: LLMatcher) -> Look:
    """Return what may follow a state for a few bytes of one way on, preferably out of what is open."""
    looks = []
    probe = state.deep_copy()
    for _ in range(_HOPS):
        choices, forced = probe.compute_bitmask(), probe.compute_ff_bytes()
        looks.append((choices, forced))
        step = forced or _way_out(choices)
        if not step:
            break
        probe.consume_tokens(list(step))
    return tuple(looks)


@functools.lru_cache(4096)
def _way_out(bitmask: bytes) -> bytes:
    choices = _choices(bitmask)
    return next((bytes([byte]) for byte in b'"}]' if byte in choices), bytes(sorted(choices)[:1]))


def _steps(choices: frozenset[int], preferred: Mapping[int, int]) -> list[bytes]:
    """Return the bytes to try of those that may come, the preferred ones first: all, or a few of many."""
    may = sorted(choices & preferred.keys(), key=lambda byte: (preferred[byte], byte))
    ascii_only = [byte for byte in may if byte < 128] or may[:1]
    if len(ascii_only) > _WIDE:
        first = {_class(bytes([byte])).replace("-", chr(byte)): byte for byte in reversed(ascii_only)}
        ascii_only = [byte for byte in ascii_only if byte in first.values() and byte != ord("\\")]
    return [bytes([byte]) for byte in ascii_only]


@functools.lru_cache(4096)
def _choices(bitmask: bytes) -> frozenset[int]:
    """Return the bytes whose bit is set."""
    bits = np.unpackbits(np.frombuffer(bitmask, dtype=np.uint8), bitorder="little")
    return frozenset(np.flatnonzero(bits[:END]).tolist())


def _class(text: bytes) -> str:
    """Return a name for what a text ends with: a digit, a small letter, a capital or something else."""
    last = chr(text[-1])
    return "0" if last.isdigit() else "a" if last.islower() else "A" if last.isupper() else "-"
