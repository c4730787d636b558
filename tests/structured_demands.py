"""A hundred schemas that ask much of a grammar: long documents, limits on one side, formats, free names and values."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
FORMATS = (
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference",
    "iri", "iri-reference", "idn-email", "idn-hostname", "uri-template", "json-pointer", "relative-json-pointer",
)  # fmt: skip
LIMITS: tuple[Schema, ...] = (
    {"minimum": 0}, {"maximum": 0}, {"minimum": 1e6}, {"maximum": -7}, {"exclusiveMinimum": 0},
    {"exclusiveMaximum": 100}, {"minimum": 10**17, "maximum": 10**18}, {"minimum": 3, "multipleOf": 3},
)  # fmt: skip

TEXT: Schema = {"type": "string"}
OTHERS: dict[str, Schema] = {
    "anything": {},
    "any object": {"type": "object"},
    "any array": {"type": "array"},
    "any number": {"type": "number"},
    "any integer": {"type": "integer"},
    "any text": TEXT,
    "age beside free names": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
    "free names of numbers": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    "names of a pattern": {"type": "object", "patternProperties": {"^[a-z]{2}$": {"type": "integer"}}},
    "tuple": {"type": "array", "prefixItems": [TEXT, {"type": "integer", "minimum": 0}], "minItems": 2},
    "number or text": {"type": ["number", "string"]},
    "integer, bounded apart": {"allOf": [{"type": "integer"}, {"minimum": 10}]},
    "one of two kinds": {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "array", "items": TEXT}]},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "number"}, "left": {"$ref": "#/$defs/node"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        },
    },
    "one of 300 words": {"enum": [f"word {number}" for number in range(300)]},
    "a large constant": {"const": 10**30},
    "beyond the default": {"type": "integer", "minimum": 10**19},
}


def _array(items: Schema, count: int) -> Schema:
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def demanding_schemas() -> dict[str, Schema]:
    """Return the schemas by name."""
    schemas: dict[str, Schema] = {}
    for name in FORMATS:
        schemas[f"format {name}"] = {"type": "string", "format": name}
    for number, limit in enumerate(LIMITS):
        for kind in ("integer", "number"):
            schemas[f"limit {number} of {kind}"] = {"type": kind, **limit}
        schemas[f"limit {number} of what it says no type of"] = limit
    for count in (2, 4, 8, 16):
        schemas[f"{count} date-times"] = _array({"type": "string", "format": "date-time"}, count)
        schemas[f"{count} uuids"] = _array({"type": "string", "format": "uuid"}, count)
    for side in (3, 6, 10):
        schemas[f"matrix of {side} numbers a side"] = _array(_array({"type": "number"}, side), side)
        schemas[f"matrix of {side} integers a side"] = _array(_array({"type": "integer", "minimum": 0}, side), side)
    for count in (20, 50, 100):
        schemas[f"{count} integers"] = _array({"type": "integer"}, count)
        schemas[f"{count} booleans at least"] = {"type": "array", "items": {"type": "boolean"}, "minItems": count}
        schemas[f"{count} texts"] = _array({"type": "string", "minLength": 3}, count)
    for length in (50, 200, 1000):
        schemas[f"text of {length}"] = {"type": "string", "minLength": length}
        schemas[f"word of {length}"] = {"type": "string", "pattern": f"^[a-z]{{{length}}}$"}
        schemas[f"text of {length} at most"] = {"type": "string", "maxLength": length}
    for count in (5, 15, 40):
        names = {f"field_{number}": {"type": "integer", "minimum": number} for number in range(count)}
        schemas[f"{count} fields, all required"] = {"type": "object", "properties": names, "required": [*names]}
        schemas[f"{count} fields, closed"] = {"type": "object", "properties": names, "additionalProperties": False}
    nested: Schema = {"type": "integer", "minimum": 0}
    for depth in range(1, 9):
        nested = {"type": "object", "properties": {"in": nested}, "required": ["in"]}
        if depth % 2 == 0:
            schemas[f"{depth} objects in one another"] = nested
    return schemas | OTHERS
