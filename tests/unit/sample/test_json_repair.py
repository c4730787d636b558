"""Repair of almost-JSON: valid documents stay as they are."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from structured_data import SHARED

from posttrain.sample.structured.repair import parse_json, repair_json

SUITE = SHARED / "data" / "json_test_suite" / "test_parsing"
needs_suite = pytest.mark.skipif(not SUITE.is_dir(), reason="the JSON parsing suite is not here")


def cases(kind: str) -> list[Path]:
    return sorted(SUITE.glob(f"{kind}_*.json"))


@needs_suite
def test_the_parsing_suite_is_parsed_as_specified() -> None:
    assert len(cases("y")) == 95 and len(cases("n")) == 188
    for file in cases("y"):
        parse_json(file.read_bytes())
    for file in cases("n"):
        with pytest.raises(ValueError):
            parse_json(file.read_bytes())


@needs_suite
def test_repair_takes_valid_documents_as_they_are() -> None:
    for file in cases("y"):
        text = file.read_bytes().decode()
        repaired = repair_json(text)
        assert repaired is not None and repaired.changes == ()
        assert repr(repaired.value) == repr(json.loads(text))


@needs_suite
def test_repair_of_broken_documents_gives_json_and_says_so() -> None:
    for file in cases("n"):
        repaired = repair_json(file.read_bytes().decode(errors="replace"))
        if repaired is not None:
            assert repaired.changes, file.name
            assert parse_json(json.dumps(repaired.value, allow_nan=False)) == repaired.value


def test_half_a_surrogate_pair_is_no_text() -> None:
    for text in (r'{"a": "\ud800"}', r'["\udc00\ud800"]', r'{"\uDFFF": 1}'):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            parse_json(text)
        repaired = repair_json(text)
        assert repaired is None or json.dumps(repaired.value, ensure_ascii=False).encode()
    assert parse_json(r'["\ud83d\ude00", "\\ud800"]') == ["😀", r"\ud800"]


def random_value(source: random.Random, depth: int) -> Any:
    kind = source.randrange(8 if depth else 6)
    if kind < 2:
        odd = [
            '"',
            "\\",
            "```json\n",
            "{",
            "]",
            ",}",
            "é",
            "\n",
            "a",
            "//",
            "'",
            "🙂",
        ]
        return "".join(source.choice(odd) for _ in range(source.randrange(6)))
    if kind < 6:
        return source.choice([None, True, False, 0, -1, 10**20, 1.5, -2e-7, source.randrange(1000)])
    if kind == 6:
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    return {random_value(random.Random(n), 0) if n % 2 else f"k{n}": random_value(source, depth - 1) for n in range(3)}


def test_repair_never_changes_a_valid_document() -> None:
    source = random.Random(1)
    for _ in range(2000):
        text = json.dumps(random_value(source, 3), ensure_ascii=source.random() < 0.5, indent=source.choice([None, 2]))
        repaired = repair_json(text)
        assert repaired is not None and repaired.changes == () and repr(repaired.value) == repr(json.loads(text))


def test_every_cut_of_a_document_is_repaired_to_a_part_of_it() -> None:
    text = '{"name": "A \\"q\\" \\u00e9", "tags": ["x", "y"], "on": true, "deep": {"n": [1.5, null]}}'
    whole = json.loads(text)
    for length in range(1, len(text)):
        repaired = repair_json(text[:length])
        assert repaired is not None and repaired.changes
        assert set(repaired.value) <= set(whole)
        assert whole["name"].startswith(repaired.value.get("name", ""))
        assert repaired.value.get("on", True) is True
        for kept, tag in zip(repaired.value.get("tags", []), whole["tags"], strict=False):
            assert tag.startswith(kept)


@pytest.mark.parametrize(
    ("text", "value", "change"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}, "took off a code fence"),
        ('Here it is:\n{"a": 1}\nDone.', {"a": 1}, "left out after the document: 5 characters"),
        ('As [you] asked: {"a": [1]}', {"a": [1]}, "left out before the document: 15 characters"),
        ('{"a": [1, 2,], }', {"a": [1, 2]}, "left out before a closing bracket: 2 commas"),
        ('{"a": ",}"', {"a": ",}"}, "closed with '}'"),
        ('{"a": {"b": "c', {"a": {"b": "c"}}, "closed with '\"}}'"),
        ('{"a": [1, [2', {"a": [1, [2]]}, "closed with ']]}'"),
        ('{"a": 1, "b": fal', {"a": 1, "b": False}, "closed with 'se}'"),
        ('{"a": 1, "b', {"a": 1}, "took back ', \"b'"),
        ("{'a': 'b'}", {"a": "b"}, "json-repair: rewrote it"),
    ],
)
def test_what_was_changed_is_told(text: str, value: Any, change: str) -> None:
    repaired = repair_json(text)
    assert repaired is not None and repaired.value == value and change in repaired.changes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('Draft: {"a": 1, "b": 2}. Better: {"a": 3}', {"a": 3}),
        ('{"a": 1, "b": 2}\n\nCorrected: {"a": 3} Done.', {"a": 3}),
        ('First {"a": 1, "b": 2, "c": 3}, then {"a": 3, "b": [1', {"a": 3, "b": [1]}),
        ('First {"a": 1, "b": 2}, then {"a": 3,}', {"a": 3}),
        ('See [1]: {"a": 1}, as in [2], or {}.', {"a": 1}),
        ("[1, 2, 3], or rather [4]", [4]),
        ('{"a": 1} (with {braces} and {"more)', {"a": 1}),
    ],
)
def test_the_last_document_of_a_response_is_taken(text: str, value: Any) -> None:
    repaired = repair_json(text)
    assert repaired is not None and repaired.value == value


@pytest.mark.parametrize("text", ["", "no JSON here", '{"a": NaN}', "12 apples"])
def test_what_holds_no_document_gives_none(text: str) -> None:
    assert repair_json(text) is None
