"""JSON documents in a response."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema_rs

from posttrain.stage.errors import UsageError


def json_object(response: str, reference: str) -> float:
    """Return 1 when the response holds exactly one JSON object and it equals the reference's in value."""
    ours, theirs = json_objects(response), json_objects(reference)
    return float(len(ours) == 1 and len(theirs) == 1 and same_json(ours[0], theirs[0]))


def fields_found(response: str, reference: str) -> float:
    """Return the share of the reference's fields that the one JSON object of a response has, with equal values."""
    found, wanted = json_objects(response), parse_object(reference)
    if len(found) != 1:
        return 0.0
    return sum(key in found[0] and same_json(found[0][key], value) for key, value in wanted.items()) / len(wanted)


def fits_schema(response: str, reference: str) -> float:
    """Return 1 when the response holds exactly one JSON object and it fits the JSON Schema of the reference."""
    found = json_objects(response)
    return float(len(found) == 1 and parse_schema(reference).is_valid(found[0]))


def parse_object(reference: str) -> dict[str, Any]:
    """Return the fields of a reference. Raises UsageError where it is no JSON object with one at least."""
    found = json_objects(reference)
    if len(found) != 1 or not found[0]:
        raise UsageError(f"reference {reference[:60]!r}: not one JSON object; give its fields as one")
    fields: dict[str, Any] = found[0]
    return fields


@functools.lru_cache(maxsize=1024)
def parse_schema(reference: str) -> Any:
    """Return the validator of a reference. Raises UsageError where it is no JSON Schema."""
    try:
        return jsonschema_rs.validator_for(json.loads(reference))
    except ValueError as error:
        raise UsageError(f"reference {reference[:60]!r}: no JSON Schema ({error}); mend it") from None


def json_objects(text: str) -> list[Any]:
    """Return the JSON objects that stand in a text, in order; those within another one are part of it."""
    decoder = json.JSONDecoder(parse_constant=no_constant)
    found: list[Any] = []
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            found.append(value)
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return found


def no_constant(name: str) -> Any:
    """Raise ValueError: NaN and infinities, which Python reads, are no JSON."""
    raise ValueError(f"{name} is no JSON")


def same_json(one: Any, other: Any) -> bool:
    """Return whether two documents are one value: 1 and 1.0 are, 1 and true are not, and properties have no order."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    # In Python True == 1, in JSON it is not.
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
