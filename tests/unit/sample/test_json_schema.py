"""JSON Schemas as grammars: which keywords are enforced, and which refused."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher
from structured_data import SHARED, all_schemas

from posttrain.sample.structured.closing import BYTES, closes
from posttrain.sample.structured.json_schema import Validator, compact_grammar, enforceable
from posttrain.stage.errors import UsageError

SUITE = SHARED / "data" / "json_schema_test_suite" / "tests" / "draft2020-12"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a/b": {"items": {"uniqueItems": True}}}}, "/properties/a~1b/items/uniqueItems"),
        ({"anyOf": [{"type": "string"}, {"not": {"type": "integer"}}]}, "/anyOf/1/not"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"contains": {"const": 1}}}}, "/$defs/x/contains"),
        ({"if": {}, "then": {"minimum": 1}}, "/if"),
        ({"properties": {"a": {"oneOf": [{"minLength": 1}, {"maxLength": 4}]}}}, "/properties/a/oneOf"),
        ({"properties": {"a": {"type": "string", "format": "phone"}}}, "/properties/a/format"),
        ({"items": {"pattern": "(?=a)b"}}, "/items/pattern"),
        ({"prefixItems": [{"patternProperties": {"a": {}, "ab": {"type": "null"}}}]}, "/prefixItems/0/patternProp"),
        ({"items": {"type": "object", "minProperties": 2}}, "/items/minProperties"),
    ],
)
def test_what_a_grammar_cannot_enforce_is_named(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(UsageError, match=place.replace("$", r"\$")):
        enforceable(schema)
    relaxed = enforceable(schema, relax=True)
    assert any(pointer.startswith(place) for pointer in relaxed.unenforced)
    assert not LLMatcher(BYTES, compact_grammar(relaxed.schema)).is_error()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "/type"),
        ({"minLength": -1}, "/minLength"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "Unsatisfiable"),
    ],
)
@pytest.mark.parametrize("relax", [False, True])
def test_what_makes_no_sense_is_refused_either_way(schema: dict[str, Any], message: str, relax: bool) -> None:
    with pytest.raises(UsageError, match=message):
        enforceable(schema, relax=relax)


def test_refused_are_only_the_demanding_shapes() -> None:
    schemas = all_schemas()
    refused = set()
    for name, schema in schemas.items():
        try:
            enforceable(schema)
        except UsageError:
            refused.add(name)
    assert refused == {name for name in schemas if name.startswith("demanding/")}
    assert len(schemas) >= 200 and len(refused) < 0.1 * len(schemas)


def test_what_is_left_out_is_checked_afterwards() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    relaxed = enforceable(schema, relax=True)
    assert relaxed.schema == {"type": "array", "items": {"type": "integer"}}
    state = LLMatcher(BYTES, compact_grammar(relaxed.schema))
    assert closes(state, b"[1,1]")
    validator = Validator(schema)
    assert not validator.is_valid([1, 1]) and validator.is_valid([1, 2])
    assert "unique" in validator.errors([1, 1])[0]


@pytest.mark.parametrize("text", ["1e5", "9" * 20, "0." + "1" * 19])
def test_numbers_without_limits_stay_in_the_range_of_parsers(text: str) -> None:
    allowed = closes(LLMatcher(BYTES, compact_grammar({"type": "number"})), text.encode())
    assert allowed == text.startswith("0.")


@pytest.mark.skipif(not SUITE.is_dir(), reason="the JSON Schema suite is not here")
def test_a_grammar_accepts_what_its_schema_does() -> None:
    """Documents in schema order and compact form are taken if valid; what is invalid never is."""
    compiled = taken = 0
    for file in sorted(SUITE.glob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            try:
                grammar = compact_grammar(enforceable(group["schema"]).schema)
            except (UsageError, TypeError, ValueError):
                continue  # refused, a schema of true or false, or one that refers to a server of the suite
            compiled += 1
            for test in group["tests"]:
                text = json.dumps(test["data"], ensure_ascii=False, separators=(",", ":")).encode()
                accepted = closes(LLMatcher(BYTES, grammar, log_level=0), text)
                assert test["valid"] or not accepted, (file.name, group["description"], test["description"])
                taken += accepted
    assert compiled > 150 and taken > 250
