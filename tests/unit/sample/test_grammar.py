"""Grammars as constraints: what they admit, and that what they admit can be ended."""

import random
import re
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from structured_data import json_vocabulary

from posttrain.sample.structured.closing import closes
from posttrain.sample.structured.constraint import mask_words
from posttrain.sample.structured.grammar import (
    Grammar,
    choice_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
    shipped_grammar,
)
from posttrain.stage.errors import UsageError


def draw(grammar: Grammar, budget: int, seed: int, breaks: float = 0.0) -> tuple[str, int]:
    """Return a random text of a grammar in so many tokens, and how many it took.

    ``breaks`` is how often a token that starts with no letter is taken if one may be, so that names end sooner.
    """
    source = random.Random(seed)
    vocabulary, constraint = grammar.vocabulary, grammar()
    bitmask = np.zeros(mask_words(len(vocabulary.pieces)), np.int32)
    tokens: list[int] = []
    while len(tokens) < budget and not constraint.ended:
        forced = constraint.forced()
        if forced and source.random() < 0.5:
            assert all(constraint.advance(token) for token in forced)
            tokens += forced
            continue
        constraint.fill(bitmask, budget - len(tokens))
        allowed = np.flatnonzero(np.unpackbits(bitmask.view(np.uint8), bitorder="little")).tolist()
        if source.random() < breaks:
            allowed = [token for token in allowed if not vocabulary.pieces[token][:1].isalnum()] or allowed
        token = source.choice(allowed)
        if constraint.advance(token):
            tokens.append(token)
        if token in vocabulary.ends:
            break
    return vocabulary.text(tokens), len(tokens)


def budgets(grammar: Grammar) -> list[int]:
    return [grammar.min_tokens, grammar.min_tokens + 1, grammar.min_tokens + 4, 2 * grammar.min_tokens, 60]


@pytest.mark.parametrize(
    "pattern", [r"[A-Z]{2}-\d{3,5}", r"(ab|ba)+c?", r"[^\n]{20,}", r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])"]
)
def test_texts_match_their_regular_expression_in_any_budget(pattern: str) -> None:
    grammar = regex_grammar(json_vocabulary(), pattern)
    for budget in budgets(grammar):
        for seed in range(5):
            text, tokens = draw(grammar, budget, seed)
            assert re.fullmatch(pattern, text) and tokens <= budget


def test_sql_parses() -> None:
    grammar = shipped_grammar(json_vocabulary(), "sql")
    database = sqlite3.connect(":memory:")
    seen = set()
    for budget in budgets(grammar):
        for seed in range(20):
            text, _ = draw(grammar, budget, seed, breaks=0.7)
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                database.execute(f"EXPLAIN {text}")
            seen |= set(re.findall(r"[A-Z]{3,}", text))
    assert {"SELECT", "FROM", "WHERE"} <= seen


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("SELECT * FROM city", True),
        ("SELECT DISTINCT c.name AS n, COUNT(*) FROM city AS c LEFT JOIN land AS l ON c.land = l.id", True),
        ("SELECT AVG(size) FROM city WHERE (a IS NOT NULL OR b LIKE '%it''s%') AND c BETWEEN 1 AND 2.5", True),
        (
            "SELECT a FROM t WHERE b NOT IN (SELECT b FROM u) GROUP BY a HAVING MAX(b) >= 3 ORDER BY a DESC LIMIT 5",
            True,
        ),
        ("SELECT a FROM t; DROP TABLE t", False),
        ("SELECT from FROM t", False),
        ("DELETE FROM t", False),
    ],
)
def test_sql_takes_queries_and_nothing_else(text: str, taken: bool) -> None:
    grammar = shipped_grammar(json_vocabulary(), "sql")
    assert closes(grammar.byte_matcher, text.encode()) == taken


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "a: 1\nb:\n  c: two words\n  d:\n    - true\n    - e: -0.5",
            {"a": 1, "b": {"c": "two words", "d": [True, {"e": -0.5}]}},
        ),
        ('- "q: \\"x\\""\n- k: null\n  l: []', ['q: "x"', {"k": None, "l": []}]),
        ("a: b: c", None),
        ("a:\n   b: 1", None),
        ("yes: 1", None),
    ],
)
def test_yaml_takes_blocks_and_nothing_else(text: str, value: Any) -> None:
    grammar = shipped_grammar(json_vocabulary(), "yaml")
    assert closes(grammar.byte_matcher, text.encode()) == (value is not None)
    assert value is None or yaml.safe_load(text) == value


def test_yaml_loads() -> None:
    grammar = shipped_grammar(json_vocabulary(), "yaml")
    kinds = set()
    for budget in budgets(grammar):
        for seed in range(20):
            text, _ = draw(grammar, budget, seed, breaks=0.7)
            value = yaml.safe_load(text)
            assert isinstance(value, dict | list)
            inner = value.values() if isinstance(value, dict) else value
            kinds |= {type(value), *map(type, inner)}
    assert {dict, list, str, int} <= kinds


def test_choices_are_all_that_comes() -> None:
    choices = ["yes", "no", 'say "no"\n', "yes and no"]
    grammar = choice_grammar(json_vocabulary(), choices)
    assert grammar.shortest in (b"no", b"yes")
    assert {draw(grammar, 30, seed)[0] for seed in range(60)} == set(choices)


def test_properties_keep_the_order_of_the_schema() -> None:
    schema = {"type": "object", "properties": {"z": {"type": "boolean"}, "a": {"type": "null"}}, "required": ["a", "z"]}
    grammar = json_schema_grammar(json_vocabulary(), schema | {"additionalProperties": False})
    assert {draw(grammar, 40, seed)[0] for seed in range(20)} == {'{"z":true,"a":null}', '{"z":false,"a":null}'}


def test_every_choice_that_fits_is_still_drawn_in_the_shortest_budget() -> None:
    grammar = json_schema_grammar(json_vocabulary(), {"enum": [1, 2, 3, "a longer one that takes many tokens"]})
    assert grammar.min_tokens == 1
    assert {draw(grammar, 1, seed)[0] for seed in range(40)} == {"1", "2", "3"}


def test_a_refused_token_leaves_the_state_and_is_not_offered_again() -> None:
    vocabulary = json_vocabulary()
    constraint = json_schema_grammar(vocabulary, {"type": "array", "items": {"type": "integer"}})()
    bitmask = np.zeros(mask_words(len(vocabulary.pieces)), np.int32)
    constraint.fill(bitmask, 2)
    opening, one, closing = (vocabulary.token_of[text] for text in (b"[", b"1", b"]"))
    assert constraint.advance(opening)
    constraint.fill(bitmask, 1)
    assert bitmask[one // 32] >> one % 32 & 1
    assert not constraint.advance(one)
    constraint.fill(bitmask, 1)
    assert not bitmask[one // 32] >> one % 32 & 1
    assert constraint.advance(closing) and constraint.ended


def test_nothing_is_forced_before_the_budget_is_known() -> None:
    vocabulary = json_vocabulary()
    constraint = json_schema_grammar(vocabulary, {"const": "a constant of many tokens"})()
    assert constraint.forced() == []
    constraint.fill(np.zeros(mask_words(len(vocabulary.pieces)), np.int32), 100)
    assert vocabulary.text(constraint.forced()) == '"a constant of many tokens"'


def test_a_budget_below_the_shortest_document_is_refused() -> None:
    grammar = regex_grammar(json_vocabulary(), "[0-9]{40}")
    bitmask = np.zeros(mask_words(len(grammar.vocabulary.pieces)), np.int32)
    grammar().fill(bitmask, grammar.min_tokens)
    with pytest.raises(UsageError, match=f"max_tokens: {grammar.min_tokens - 1} left.* needs {grammar.min_tokens}"):
        grammar().fill(bitmask, grammar.min_tokens - 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda vocabulary: regex_grammar(vocabulary, "(a"), "unclosed group"),
        (lambda vocabulary: lark_grammar(vocabulary, "start: foo"), "foo"),
        (lambda vocabulary: choice_grammar(vocabulary, []), "choices"),
        (lambda vocabulary: shipped_grammar(vocabulary, "xml"), "sql or yaml"),
        (lambda vocabulary: json_schema_grammar(vocabulary, {"type": "array", "uniqueItems": True}), "/uniqueItems"),
    ],
)
def test_a_grammar_that_is_wrong_is_refused(make: Callable[..., Grammar], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(json_vocabulary())
