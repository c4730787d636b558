"""JSON documents in a response."""

from __future__ import annotations

import json
from typing import Any


def json_object(response: str, reference: str) -> float:
    """Return 1 when the response holds exactly one JSON object and it equals the reference's in value."""
    ours, theirs = json_objects(response), json_objects(reference)
    return float(len(ours) == 1 and len(theirs) == 1 and same_json(ours[0], theirs[0]))


def json_objects(text: str) -> list[Any]:
    """Return the JSON objects that stand in a text, in order; those within another one are part of it."""
    decoder = json.JSONDecoder()
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


def same_json(one: Any, other: Any) -> bool:
    """Return whether two documents are one value: 1 and 1.0 are, 1 and true are not, and properties have no order."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    # In Python True == 1, in JSON it is not.
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
