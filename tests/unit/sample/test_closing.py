"""The shortest endings of documents that a grammar has begun."""

import itertools
import random
from typing import Any

import pytest
from llguidance import LLMatcher
from structured_data import json_vocabulary, vocabulary_of

from posttrain.sample.structured.closing import BYTES, closes, endings
from posttrain.sample.structured.grammar import Grammar, json_schema_grammar
from posttrain.sample.structured.json_schema import compact_grammar

TINY = [*'{}[]":,01abtruenl', "ab", "aa", '"a"', '":"', '"}', "true", "null", "10", "],[", ',"b":', '{"', "[0", ",0"]


def test_segments_are_the_fewest() -> None:
    vocabulary = vocabulary_of(["a", "b", "ab", "ba", "aba", "bab", "abab"])
    for length in range(1, 9):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            fewest = [0]
            for end in range(1, length + 1):
                starts = (start for start in range(end) if text[start:end].encode() in vocabulary.token_of)
                fewest.append(1 + min(fewest[start] for start in starts))
            tokens = vocabulary.segment(text.encode())
            assert tokens is not None and vocabulary.text(tokens) == text and len(tokens) == fewest[-1]
    assert vocabulary.segment(b"abc") is None


@pytest.mark.parametrize(
    ("schema", "begun", "ending"),
    [
        ({"type": "array", "items": {"type": "boolean"}}, "[true,fal", "se]"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, '{"a":"x\\', '""}'),
        ({"enum": ["red", "reddish"]}, '"redd', 'ish"'),
        ({"type": "string", "minLength": 5}, '"é', '    "'),
        ({"type": "integer", "minimum": 100, "maximum": 999}, "1", "00"),
        ({"type": "number"}, "1.", "0"),
        ({}, '[{"a":[', "]}]"),
    ],
)
def test_the_shortest_ending_is_found(schema: dict[str, Any], begun: str, ending: str) -> None:
    state = LLMatcher(BYTES, compact_grammar(schema))
    assert state.consume_tokens(list(begun.encode()))
    found = next(endings(state, None, dict.fromkeys(range(256), 0), 1000, 1000))
    assert closes(state, found) and len(found) == len(ending)


def test_a_known_ending_shortens_the_search() -> None:
    schema = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 40}
    state = LLMatcher(BYTES, compact_grammar(schema))
    rest = b",[]" * 39 + b"]"
    assert state.consume_tokens(list(b"[[1"))
    found = next(endings(state, rest, dict.fromkeys(range(256), 0), 20, 1000))
    assert found == b"]" + rest


def random_schema(source: random.Random, depth: int) -> dict[str, Any]:
    kind = source.randrange(9 if depth else 5)
    if kind == 0:
        return {"enum": source.sample(["a", "ab", "ba", "aab", "bbbb", "aaaa"], source.randint(1, 3))}
    if kind == 1:
        low, high = source.choice([0, 1, 10, 100]), source.choice([100, 110, 1111])
        return {"type": "integer", "minimum": low, "maximum": high}
    if kind == 2:
        return {"enum": [True, None]}
    if kind == 3:
        return {"type": "string", "minLength": source.randint(0, 3)}
    if kind == 4:
        return {"type": "string", "pattern": source.choice(["^a{2,4}$", "^(ab|b)b$", "^[ab]{3}$", "^(a|bb)+b$"])}
    if kind == 5:
        return {"type": "array", "items": random_schema(source, depth - 1), "minItems": source.randint(0, 2)}
    if kind == 6:
        names = source.sample(["a", "b", "ab"], source.randint(1, 2))
        properties = {name: random_schema(source, depth - 1) for name in names}
        required = [name for name in names if source.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    parts = [random_schema(source, depth - 1), random_schema(source, depth - 1)]
    if kind == 7:
        return {"anyOf": parts}
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": source.randint(1, 2)}


def fewest_tokens(grammar: Grammar, most: int) -> int | None:
    """Return the tokens of the shortest document by trying all, level by level."""
    level = [grammar.matcher.deep_copy()]
    for count in range(most + 1):
        if any(state.is_accepting() for state in level):
            return count
        after = []
        for state in level:
            for token, piece in enumerate(grammar.vocabulary.pieces):
                if piece and state.validate_tokens([token]) == 1:
                    after.append(state.deep_copy())
                    after[-1].consume_token(token)
        level = after
    return None


def test_the_shortest_document_against_an_exhaustive_search() -> None:
    vocabulary, source = vocabulary_of(TINY), random.Random(0)
    excess = []
    for _ in range(60):
        grammar = json_schema_grammar(vocabulary, random_schema(source, 2))
        if grammar.min_tokens <= 7:
            fewest = fewest_tokens(grammar, grammar.min_tokens)
            assert fewest is not None
            excess.append(grammar.min_tokens - fewest)
    assert len(excess) > 40
    # A string that is shorter in tokens because punctuation came in one with quotes may be missed, by one token.
    assert excess.count(0) >= 0.95 * len(excess) and max(excess) <= 1


def test_the_vocabulary_spells_what_its_tokenizer_does() -> None:
    vocabulary = json_vocabulary()
    text = '{"name":"Zoë","emoji":"🙂","tab":"\\t"}'
    assert vocabulary.text(vocabulary.tokenizer.tokenize_str(text)) == text
    assert b"" not in vocabulary.token_of and vocabulary.pieces[vocabulary.ends[0]] == b""
