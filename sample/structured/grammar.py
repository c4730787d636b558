"""Grammars as constraints on sampling: JSON Schema, regular expressions, Lark, choices; all through llguidance.

A sample under a grammar always ends as a whole document within its tokens: at every step an ending is known that fits
into the tokens left, and a token after which none is found is not taken.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from llguidance import LLMatcher

from posttrain.sample.structured.closing import BYTES, Look, Vocabulary, closes, endings, look_of, straight_ending
from posttrain.sample.structured.constraint import Bitmask, mask_words
from posttrain.sample.structured.json_schema import compact_grammar, enforceable
from posttrain.stage.errors import PosttrainError, UsageError

MAX_TRIES = 4
"""Tokens refused at one step before the known ending is taken."""
_SEARCH_START, _SEARCH_STEP = 4_000, 200
"""States that the search for an ending visits before a sample and between two tokens."""
_FAR, _FARTHEST = 160, 40_000
"""Bytes from which on an ending found by going straight on will do, and most that it may have."""
_LONGER = 4
"""Bytes by which an ending of fewer tokens may exceed the shortest."""
_BYTES_PER_TOKEN = 8
"""An ending longer than this many bytes a token is not looked for."""
_FEW = 2_000
"""Where more tokens are allowed, no single one is tried as a shortcut."""
_REMEMBERED = 10_000
"""Endings that a grammar keeps."""


class Grammar:
    """A compiled grammar; calling it starts a constraint for one sample."""

    def __init__(self, vocabulary: Vocabulary, grammar: str, name: str) -> None:
        """Compile a grammar of llguidance. Raises UsageError when it is wrong or has no document.

        ``name`` is what messages call it.
        """
        self.vocabulary, self.name = vocabulary, name
        self.matcher = LLMatcher(vocabulary.tokenizer, grammar)
        if self.matcher.is_error():
            raise UsageError(f"{name}: {_error(self.matcher)}")
        self.byte_matcher = LLMatcher(BYTES, grammar)
        self.segment: Callable[[bytes], list[int] | None] = functools.lru_cache(1024)(vocabulary.segment)
        self._endings: dict[tuple[Look, bytes, int], bytes | None] = {}
        self.shortest = self._shortest()
        """A document of the fewest tokens, as far as the search can tell."""

    def __call__(self) -> GrammarConstraint:
        """Return the constraint of one sample."""
        return GrammarConstraint(self)

    @property
    def min_tokens(self) -> int:
        """Tokens of the shortest document: `max_tokens` must not be less."""
        return len(self.segment(self.shortest) or [])

    def fits(self, ending: bytes, tokens: int) -> bool:
        """Return whether an ending takes at most so many tokens; each of its bytes is a token if need be."""
        return len(ending) <= tokens or len(self.segment(ending) or ending) <= tokens

    def ending(self, state: LLMatcher, known: bytes, tokens: int) -> bytes | None:
        """Return an ending of a state of the byte matcher in so many tokens, or None where none is found soon.

        ``known`` ended an earlier state. What was found for a state that looked alike is tried first.
        """
        key = (look_of(state), known, min(tokens, len(known)))
        ending = self._endings.get(key, b"")
        if ending is None or (ending and closes(state, ending)):
            return ending
        longest = len(known) + _BYTES_PER_TOKEN * tokens
        ending = next(endings(state, known, self.vocabulary.preferred, _SEARCH_STEP, longest), None)
        if len(self._endings) >= _REMEMBERED:
            self._endings.clear()
        self._endings[key] = ending
        return ending

    def _cost(self, text: bytes) -> int:
        return len(self.segment(text) or text)

    def _shortest(self) -> bytes:
        best: bytes | None = None
        far = straight_ending(self.byte_matcher, self.vocabulary.preferred, _FARTHEST)
        likely = far is not None and _FAR <= len(far) < _FARTHEST // 10  # longer, it lost its way in free text
        states = _SEARCH_STEP if likely else _SEARCH_START
        for text in endings(self.byte_matcher, None, self.vocabulary.preferred, states, sys.maxsize):
            longest = len(best) + _LONGER if best is not None else len(text)
            if len(text) > longest:
                break
            if best is None or self._cost(text) < self._cost(best):
                best = text
        if best is None and far is not None:
            return far
        if best is None:
            raise UsageError(f"{self.name}: found no document that grammar and vocabulary admit; simplify it")
        while len(best) < _FAR and (shorter := self._shortcut(best)):
            best = shorter
        return best

    def _shortcut(self, text: bytes) -> bytes | None:
        """Return a document in which one token takes the place of several, such as 1999 that of 21 and 00."""
        matcher, state = self.matcher.deep_copy(), self.byte_matcher.deep_copy()
        tokens = self.segment(text) or []
        pieces = [self.vocabulary.pieces[token] for token in tokens]
        for done in range(len(tokens) - 1):
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits[: len(self.vocabulary.pieces)]).tolist()
            rest = b"".join(pieces[done + 2 :])
            for token in allowed if len(allowed) <= _FEW else ():
                after = state.deep_copy()
                after.consume_tokens(list(self.vocabulary.pieces[token]))
                if closes(after, rest):
                    return b"".join([*pieces[:done], self.vocabulary.pieces[token], rest])
            matcher.consume_token(tokens[done])
            state.consume_tokens(list(pieces[done]))
        return None


class GrammarConstraint:
    """One sample under a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._bytes = grammar.byte_matcher.deep_copy()
        self._ending = grammar.shortest
        self._left = 0
        self._refused: list[int] = []

    @property
    def ended(self) -> bool:
        """Whether nothing but the end is admitted now."""
        return self._matcher.is_stopped()

    def fill(self, bitmask_W: Bitmask, tokens_left: int) -> None:
        """Set the bits of the tokens that may come next, EOS where the document may end, and clear all others.

        Raises UsageError when the shortest document does not fit into ``tokens_left``.
        """
        grammar, self._left = self._grammar, tokens_left
        if not grammar.fits(self._ending, tokens_left):
            raise UsageError(
                f"max_tokens: {tokens_left} left, but {grammar.name} needs "
                f"{len(grammar.segment(self._ending) or self._ending)} more for the shortest document; raise it"
            )
        words = bitmask_W.view(np.uint32)
        words[:] = 0
        if len(self._refused) <= MAX_TRIES:
            mask = words[: mask_words(grammar.vocabulary.tokenizer.vocab_size)]
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():
                raise PosttrainError(f"{grammar.name}: {_error(self._matcher)}")
            for token in self._refused:
                words[token // 32] &= ~_bit(token)
        if not words.any():
            tokens = grammar.segment(self._ending) or []
            for token in tokens[:1] or grammar.vocabulary.ends:
                words[token // 32] |= _bit(token)

    def advance(self, token: int) -> bool:
        """Take a token, or return False when no ending after it is found that fits into the tokens left."""
        grammar = self._grammar
        if token in grammar.vocabulary.ends:
            self._matcher.consume_token(token)
            return True
        piece = grammar.vocabulary.pieces[token]
        after = self._bytes.deep_copy()
        if not after.consume_tokens(list(piece)):
            raise PosttrainError(f"{grammar.name}: token {token} ({piece!r}) is not allowed here; {_error(after)}")
        ending = self._ending_after(after, piece)
        if ending is None:
            self._refused.append(token)
            return False
        if not self._matcher.consume_token(token):
            raise PosttrainError(f"{grammar.name}: {_error(self._matcher)}")
        self._bytes, self._ending, self._left, self._refused = after, ending, self._left - 1, []
        return True

    def forced(self) -> list[int]:
        """Return tokens that must come next, which need no forward pass each; none before the first `fill`."""
        tokens = self._matcher.compute_ff_tokens()
        text = b"".join(self._grammar.vocabulary.pieces[token] for token in tokens)
        fits = self._grammar.fits(self._ending[len(text) :], self._left - len(tokens))
        return tokens if fits and self._ending.startswith(text) else []

    def _ending_after(self, state: LLMatcher, piece: bytes) -> bytes | None:
        """Return an ending of the state after a token that fits into what is left then."""
        grammar = self._grammar
        if self._ending.startswith(piece):
            ending: bytes | None = self._ending[len(piece) :]
        elif closes(state, self._ending):
            ending = self._ending
        else:
            ending = grammar.ending(state, self._ending, self._left - 1)
        return ending if ending is not None and grammar.fits(ending, self._left - 1) else None


def json_schema_grammar(vocabulary: Vocabulary, schema: Mapping[str, Any], *, relax: bool = False) -> Grammar:
    """Return the grammar of compact JSON documents of a schema, their properties in its order.

    Raises UsageError that names the keyword and path which a grammar cannot enforce. ``relax`` leaves those out;
    `json_schema.Validator` then has to check what comes.
    """
    return Grammar(vocabulary, compact_grammar(enforceable(schema, relax=relax).schema), "schema")


def regex_grammar(vocabulary: Vocabulary, pattern: str) -> Grammar:
    """Return the grammar of texts that match a regular expression (of Rust's syntax) from begin to end."""
    return Grammar(vocabulary, LLMatcher.grammar_from_regex(pattern), f"regex {pattern!r}")


def lark_grammar(vocabulary: Vocabulary, grammar: str, name: str = "Lark grammar") -> Grammar:
    """Return the grammar of the texts of a Lark grammar, as llguidance reads it."""
    return Grammar(vocabulary, LLMatcher.grammar_from_lark(grammar), name)


def choice_grammar(vocabulary: Vocabulary, choices: Sequence[str]) -> Grammar:
    """Return the grammar of a few given texts."""
    if not choices or "" in choices:
        raise UsageError(f"choices={list(choices)!r}: needs at least one, none of them empty")
    return lark_grammar(vocabulary, "start: " + " | ".join(json.dumps(choice) for choice in choices), "choices")


def shipped_grammar(vocabulary: Vocabulary, name: str) -> Grammar:
    """Return a grammar of this package: ``sql`` (one SELECT statement) or ``yaml`` (block mappings and sequences)."""
    file = resources.files("posttrain.sample.structured").joinpath(f"{name}.lark")
    if not file.is_file():
        raise UsageError(f"grammar={name}: unknown; give sql or yaml")
    return lark_grammar(vocabulary, file.read_text(encoding="utf-8"), name)


def _bit(token: int) -> np.uint32:
    return np.uint32(1 << token % 32)


def _error(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().split())[:200]
