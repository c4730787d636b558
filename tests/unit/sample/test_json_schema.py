"""JSON Schemas as grammars: which keywords are enforced, and which refused."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher
from structured_data import SHARED, all_schemas
from structured_demands import demanding_schemas

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
        ({"const": "a\0b"}, "control characters"),
    ],
)
@pytest.mark.parametrize("relax", [False, True])
def test_what_makes_no_sense_is_refused_either_way(schema: dict[str, Any], message: str, relax: bool) -> None:
    with pytest.raises(UsageError, match=message):
        enforceable(schema, relax=relax)


def _is_refused(schema: dict[str, Any]) -> bool:
    try:
        enforceable(schema)
    except UsageError:
        return True
    return False


def test_refused_are_only_the_demanding_shapes() -> None:
    schemas = all_schemas()
    refused = {name for name, schema in schemas.items() if _is_refused(schema)}
    demanding = {name for name in schemas if name.startswith("demanding/")}
    assert demanding - refused == {"demanding/card_needs_address", "demanding/dependent_schema"}
    assert refused < demanding and len(schemas) >= 200
    others = [name for name in demanding_schemas() if _is_refused(demanding_schemas()[name])]
    assert others == ["beyond the default"]
    assert len(refused) + len(others) < 0.05 * (len(schemas) + len(demanding_schemas()))


def test_what_is_left_out_is_checked_afterwards() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    relaxed = enforceable(schema, relax=True)
    assert relaxed.schema == {"type": "array", "items": {"type": "integer"}}
    state = LLMatcher(BYTES, compact_grammar(relaxed.schema))
    assert closes(state, b"[1,1]")
    validator = Validator(schema)
    assert not validator.is_valid([1, 1]) and validator.is_valid([1, 2])
    assert "unique" in validator.errors([1, 1])[0]


@pytest.mark.parametrize("text", ["1e5", "9" * 20, "0." + "1" * 9, "1." + "1" * 10])
def test_numbers_without_limits_stay_in_the_range_of_parsers(text: str) -> None:
    allowed = closes(LLMatcher(BYTES, compact_grammar({"type": "number"})), text.encode())
    assert allowed == text.startswith("0.")


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"type": "integer", "minimum": 0}, ["0", "9" * 18], ["9" * 19, "-1"]),
        ({"type": "integer", "maximum": 5}, ["5", "-" + "9" * 18], ["-1" + "0" * 19]),
        ({"type": "number", "exclusiveMinimum": 1}, ["1.5", "1.000000001"], ["1", "1e400", "9" * 400]),
        ({"minimum": 2}, ["2", '"x"'], ["1e999", "1", "[1e999]", '{"a":1e999}']),
        ({}, ["1.5", "[[1]]", '{"a":{"b":1}}'], ["1e999", "[1e999]", '{"a":[1e999]}', '"' + "x" * 4097 + '"']),
        ({"properties": {"a": True}}, ['{"a":1,"b":2}'], ['{"a":1e999}', '{"b":1e999}']),
        ({"type": "string"}, ['"' + "x" * 4096 + '"'], ['"' + "x" * 4097 + '"']),
        ({"type": "string", "minLength": 5000}, ['"' + "x" * 5000 + '"'], []),
        ({"type": "integer", "minimum": 10**17, "maximum": 10**30}, ["1" + "0" * 17], ["1" + "0" * 16]),
        ({"allOf": [{"type": "string", "minLength": 5000}, {"type": "string"}]}, ['"' + "x" * 5000 + '"'], ['""']),
    ],
)
def test_what_a_schema_leaves_open_has_limits(schema: dict[str, Any], taken: list[str], refused: list[str]) -> None:
    state = LLMatcher(BYTES, compact_grammar(schema), log_level=0)
    assert [text for text in taken if not closes(state, text.encode())] == []
    assert [text for text in refused if closes(state, text.encode())] == []


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('{"card":1,"address":1}', True),
        ('{"address":1}', True),
        ("{}", True),
        ('{"card":1}', False),
        ('{"kind":1}', False),
    ],
)
def test_what_one_property_demands_of_others_is_enforced(text: str, taken: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"card": {"const": 1}, "address": {"const": 1}, "kind": {"const": 1}},
        "dependentRequired": {"card": ["address"]},
        "dependentSchemas": {"kind": {"required": ["card"]}},
        "additionalProperties": False,
    }
    assert closes(LLMatcher(BYTES, compact_grammar(enforceable(schema).schema)), text.encode()) == taken
    assert Validator(schema).is_valid(json.loads(text)) == taken


@pytest.mark.parametrize("text", [r'{"\u0061ge":"x"}', r'{"b":"\ud800"}', r'{"\u0062":1}'])
def test_names_and_texts_are_written_in_one_way_only(text: str) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    state = LLMatcher(BYTES, compact_grammar(schema), log_level=0)
    assert closes(state, b'{"age":1,"b":"x\\n"}') and not closes(state, text.encode())


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "2023-12-31", "2023-02-30"),
        ("date-time", "2023-02-28T23:59:59Z", "2023-02-28T23:59:60Z"),
        ("time", "00:00:00+02:00", "24:00:00Z"),
        ("email", "a.b@example.org", "a..b@example.org"),
        ("json-pointer", "/a/~0b", "/a~2"),
        ("iri", "https://example.org/a?b=c", "example"),
    ],
)
def test_a_format_is_enforced_and_checked(name: str, good: str, bad: str) -> None:
    schema = {"type": "string", "format": name}
    state = LLMatcher(BYTES, compact_grammar(schema), log_level=0)
    assert [closes(state, json.dumps(text).encode()) for text in (good, bad)] == [True, False]
    assert Validator(schema).is_valid(good)
    assert Validator(schema).is_valid(bad) == (bad.endswith(":60Z"))  # leap seconds exist, and are not written


def test_a_document_with_half_a_surrogate_pair_is_not_valid() -> None:
    document = json.loads('{"a": "\\ud800"}')
    validator = Validator({"properties": {"a": {"pattern": "x"}}})
    assert not validator.is_valid(document)
    assert "surrogate" in validator.errors(document)[0]


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
