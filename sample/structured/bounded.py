"""Schemas held to what parsers and validators take: numbers and texts of bounded length, formats as their patterns.

Every document of a bounded schema is one of the schema that it was made from; not the other way round.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]

MAX_NUMBER = 10**18
"""Largest absolute value of a number that the schema does not limit on that side: 18 digits before the point."""
NUMBER_STEP = 1e-9
"""Digits behind the point of a number, as `multipleOf`, where the schema states none."""
MAX_TEXT = 4096
"""Most characters of a text that the schema does not limit."""
MAX_DEPTH = 3
"""How deep values nest of which the schema says nothing."""

_ANY = "_any_{}_deep"
_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_SAID_ELSEWHERE = {"enum", "const", "$ref", "$dynamicRef", "anyOf", "oneOf", "allOf"}
_SHAPES = {"properties", "patternProperties", "additionalProperties", "items", "prefixItems"}
_FEBRUARY = "02-(0[1-9]|1[0-9]|2[0-8])"
_LEAP_YEAR = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|(1[26]|[2468][048]|[3579][26])00)"
_DATE = (
    r"([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
    rf"{_FEBRUARY})|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABELS = r"([A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20}){0,2}\.){1,3}[A-Za-z]{2,20}"
_EMAIL = rf"[A-Za-z0-9_+-]{{1,20}}(\.[A-Za-z0-9_+-]{{1,20}}){{0,2}}@{_LABELS}"
_PATH = r"(/[A-Za-z0-9._~-]{0,60}){0,8}(\?[A-Za-z0-9._~=&-]{0,120})?(#[A-Za-z0-9._~-]{0,60})?"
_POINTER = r"(/([^/~\"\\\x00-\x1f\x7f]|~[01])*)*"
PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "idn-hostname": _LABELS,
    "iri": rf"https?://{_LABELS}(:[1-9][0-9]{{0,3}})?{_PATH}",
    "uri-reference": rf"(https?://{_LABELS})?{_PATH}",
    "iri-reference": rf"(https?://{_LABELS})?{_PATH}",
    "uri-template": rf"(https?://{_LABELS})?(/([A-Za-z0-9._~-]{{1,60}}|\{{[A-Za-z0-9_]{{1,30}}\}})){{1,8}}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9][0-9]{{0,5}})(#|{_POINTER})",
}
"""Formats that llguidance takes too widely or not at all: dates that exist, no leap seconds, plain mail addresses."""


def in_plain_keywords(schema: Mapping[str, Any]) -> Schema:
    """Return a schema in which formats of `PATTERNS` are patterns, and dependencies of properties alternatives."""
    result = copy.deepcopy(dict(schema))
    for _, sub in list(subschemas(result)):
        needs = {name: {"required": names} for name, names in sub.pop("dependentRequired", {}).items()}
        for name, need in (*needs.items(), *sub.pop("dependentSchemas", {}).items()):
            sub["allOf"] = [*sub.get("allOf", []), {"anyOf": [{"properties": {name: False}}, need]}]
        if sub.get("format") in PATTERNS:
            pattern = {"pattern": f"^{PATTERNS[sub.pop('format')]}$"}
            if "pattern" in sub:
                sub["allOf"] = [*sub.get("allOf", []), pattern]
            else:
                sub.update(pattern)
    return result


def bounded(schema: Mapping[str, Any], *, free: bool = True) -> Schema:
    """Return a schema whose numbers and texts have limits.

    With ``free`` that holds for values of which it says nothing too; those then nest `MAX_DEPTH` deep at most. Parts of
    one schema that meet in a value are left as they are, since llguidance loses values where much meets.
    """
    result = copy.deepcopy(dict(schema))
    places = dict(subschemas(result))
    for path, sub in places.items():
        said = bool(_SAID_ELSEWHERE & sub.keys())
        stated = sub.get("type")
        types = {stated} if isinstance(stated, str) else set(stated or ())
        if types & {"number", "integer"} or not (types or said):
            _bound_numbers(sub, whole="number" not in types and bool(types))
        if ("string" in types or not (types or said)) and not {"enum", "const"} & sub.keys():
            sub.setdefault("maxLength", max(MAX_TEXT, 2 * sub.get("minLength", 0)))
        if free and not said and not _meets_others(path, places):
            _close(sub, types)
    if free:
        result["$defs"] = {**result.get("$defs", {}), **_any_values()}
    return result


def _meets_others(path: str, places: Mapping[str, Schema]) -> bool:
    """Return whether a schema, or one that it is part of, is one of several that a value must have."""
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part == "allOf":
            return True
        if part in ("anyOf", "oneOf") and _SHAPES & places.get("/".join(parts[:place]), {}).keys():
            return True
    return False


def _bound_numbers(sub: Schema, whole: bool) -> None:
    """Give numbers the limits that they lack; ``whole`` says that they are integers."""
    if {"enum", "const"} & sub.keys():
        return
    lower = [sub[key] for key in ("minimum", "exclusiveMinimum") if isinstance(sub.get(key), int | float)]
    upper = [sub[key] for key in ("maximum", "exclusiveMaximum") if isinstance(sub.get(key), int | float)]
    if not lower:
        sub["minimum"] = min(-MAX_NUMBER, *(2 * value for value in upper)) if upper else -MAX_NUMBER
    if not upper:
        sub["maximum"] = max(MAX_NUMBER, *(2 * value for value in lower)) if lower else MAX_NUMBER
    if not whole:
        sub.setdefault("multipleOf", NUMBER_STEP)


def _close(sub: Schema, types: set[str]) -> None:
    """Let a schema say something of all that stands in its objects and arrays."""
    anything = {"$ref": f"#/$defs/{_ANY.format(MAX_DEPTH - 1)}"}
    if not types or "object" in types:
        if sub.get("additionalProperties", True) is True:
            sub["additionalProperties"] = anything
        for keyword in ("properties", "patternProperties"):
            for name, value in sub.get(keyword, {}).items():
                if value is True or value == {}:
                    sub[keyword][name] = anything
    if not types or "array" in types:
        rest = "additionalItems" if isinstance(sub.get("items"), list) else "items"
        if sub.get(rest, True) is True or sub.get(rest) == {}:
            sub[rest] = anything


def _any_values() -> Schema:
    """Return the definitions of values of any type, by how deep they nest."""
    leaf: Schema = {"type": ["null", "boolean", "number", "string"], "maxLength": MAX_TEXT}
    _bound_numbers(leaf, whole=False)
    definitions = {_ANY.format(0): leaf}
    for depth in range(1, MAX_DEPTH):
        inner = {"$ref": f"#/$defs/{_ANY.format(depth - 1)}"}
        branch = {"type": [*leaf["type"], "array", "object"], "items": inner, "additionalProperties": inner}
        definitions[_ANY.format(depth)] = {**leaf, **branch}
    return definitions


def subschemas(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield the JSON pointer and value of each schema in a schema, itself included, that a grammar may enforce."""
    yield path, schema
    for keyword, value in list(schema.items()):
        if keyword in _NAMED and isinstance(value, dict):
            inner = [(f"{keyword}/{_escape(name)}", sub) for name, sub in value.items()]
        elif keyword in _LISTED and isinstance(value, list):
            inner = [(f"{keyword}/{index}", sub) for index, sub in enumerate(value)]
        else:
            inner = [(keyword, value)] if keyword in _SINGLE else []
        for name, sub in inner:
            if isinstance(sub, dict):
                yield from subschemas(sub, f"{path}/{name}")


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
