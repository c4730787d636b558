"""What of a JSON Schema a grammar can enforce, and the check of what it cannot.

llguidance refuses what it does not know instead of passing over it. The place and the keyword are found here, so that a
message can name them, or so that the rest of the schema can be enforced and the keyword be checked afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
from llguidance import LLMatcher

from posttrain.sample.structured.bounded import Schema, bounded, in_plain_keywords, subschemas
from posttrain.sample.structured.closing import BYTES
from posttrain.stage.errors import UsageError

_OPTIONS = {
    "whitespace_flexible": False,
    "lenient": False,
    "coerce_one_of": False,
    "json_allowed_escapes": 'bfnrt"\\',
}
"""Escapes by number are out: with them a name can be written in two ways, of which a schema forbids one alone, and
half a surrogate pair is no text."""
_CONTROL = re.compile(r"(?<!\\)(\\\\)*\\u00(0[0-7be]|0f|1|7f)")
_MESSAGES = {
    r"Unimplemented keys: \[(.*)\]": None,
    r"Unknown format": ("format",),
    r"oneOf constraints are not supported": ("oneOf",),
    r"patternProperty regexes": ("patternProperties",),
    r"min/maxProperties": ("minProperties", "maxProperties"),
    r"(float|integer) range": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    r"multipleOf": ("multipleOf",),
    r"[Rr]egex": ("pattern", "patternProperties"),
    r"'(min|max)(Items|Length|Properties)'": (
        "minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties",
    ),
}  # fmt: skip
"""What llguidance says, by the keywords that it says it of; None where the message lists them."""


@dataclasses.dataclass(frozen=True)
class Enforceable:
    """A schema that a grammar can hold to."""

    schema: Schema
    unenforced: tuple[str, ...]
    """JSON pointers of the keywords that were left out, to be checked afterwards."""


def compact_grammar(schema: Mapping[str, Any]) -> str:
    """Return llguidance's grammar of the documents of a schema without whitespace between their parts.

    Numbers and texts that the schema does not limit have the limits of `bounded`, since a model that runs on with
    digits would leave the range of every parser; where those contradict the schema, it goes without them.
    """
    plain = in_plain_keywords(schema)
    for held in (bounded(plain), bounded(plain, free=False)):
        grammar = _compiled(held)
        if not LLMatcher(BYTES, grammar, log_level=0).is_error():
            return grammar
    return _compiled(plain)


def _compiled(schema: Schema) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)  # type: ignore[arg-type]


def enforceable(schema: Mapping[str, Any], *, relax: bool = False) -> Enforceable:
    """Return what of a schema a grammar can enforce.

    Raises UsageError that names the path and the keyword of what it cannot; with ``relax`` such keywords are left out
    and listed instead. What makes no sense, such as a broken pattern or a `$ref` to nowhere, is refused either way.
    """
    Validator(schema)
    if _CONTROL.search(json.dumps(dict(schema))):
        raise UsageError(
            "schema: a grammar cannot write its control characters, other than \\b \\f \\n \\r \\t; leave them out"
        )
    rest = {key: value for key, value in copy.deepcopy(dict(schema)).items() if key != "x-guidance"}
    unenforced: list[str] = []
    while problem := _problem(rest):
        path, keywords, reason = problem
        pointers = [f"{path}/{keyword}" for keyword in keywords]
        if not keywords:
            raise UsageError(f"schema at {path or '/'}: {reason}")
        if not relax:
            raise UsageError(
                f"schema at {', '.join(pointers)}: a grammar cannot enforce it ({reason}); leave it out, or let it be "
                f"checked afterwards"
            )
        _leave_out(dict(subschemas(rest))[path], keywords)
        unenforced += pointers
    return Enforceable(rest, tuple(unenforced))


class Validator:
    """Checks documents against a whole schema, of the draft that its `$schema` names or else 2020-12.

    Formats count, where they are known.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Compile the schema. Raises UsageError that names the place where it is no JSON Schema."""
        try:
            self._validator = jsonschema_rs.validator_for(dict(schema), offline=True, validate_formats=True)
        except jsonschema_rs.ValidationError as error:
            path = "".join(f"/{part}" for part in error.instance_path)
            raise UsageError(f"schema at {path or '/'}: {error.message}") from None
        except (jsonschema_rs.ReferencingError, ValueError) as error:
            raise UsageError(f"schema: {str(error).splitlines()[0]}") from None

    def is_valid(self, document: Any) -> bool:
        """Return whether a parsed document has the schema; one with half a surrogate pair has none."""
        try:
            return self._validator.is_valid(document)
        except UnicodeEncodeError:
            return False

    def errors(self, document: Any) -> list[str]:
        """Return what is wrong with a parsed document, one line each with its path."""
        try:
            found = list(self._validator.iter_errors(document))
        except UnicodeEncodeError as error:
            return [f": half a surrogate pair ({error.object[error.start]!a}) is no text"]
        return ["".join(f"/{part}" for part in error.instance_path) + f": {error.message}" for error in found]


def _problem(schema: Schema) -> tuple[str, list[str], str] | None:
    """Return path, keywords and reason of the first thing in a schema that no grammar can hold to, if there is one."""
    reason = _refusal(schema)
    places = sorted(subschemas(schema), key=lambda place: (_in_definitions(place[0]), -place[0].count("/")))
    if not reason:
        return next(((path, ["minProperties"], "names may repeat") for path, sub in places if _may_repeat(sub)), None)
    shared: Schema = {key: schema[key] for key in ("$schema", "$defs", "definitions") if key in schema}
    for path, sub in places:
        keywords = _keywords(reason, sub)
        if keywords and (path == "" or _refusal({**shared, **sub}) == reason):
            return path, keywords, reason
    return "", [], reason


def _refusal(schema: Schema) -> str:
    matcher = LLMatcher(BYTES, _compiled(in_plain_keywords(schema)), log_level=0)
    return matcher.get_error().strip().split("\n")[0]


def _keywords(reason: str, schema: Schema) -> list[str]:
    """Return the keywords of a schema that a message of llguidance is about."""
    for pattern, keywords in _MESSAGES.items():
        if found := re.search(pattern, reason):
            named = re.findall(r'"([^"]+)"', found.group(1)) if keywords is None else keywords
            return [keyword for keyword in named if keyword in schema]
    return []


def _may_repeat(schema: Schema) -> bool:
    """Return whether two equal names of an object could make up for its `minProperties`.

    A grammar does not remember names that the schema does not list.
    """
    free = schema.get("additionalProperties") is not False or "patternProperties" in schema
    return free and schema.get("minProperties", 0) - len(schema.get("required", ())) >= 2


def _leave_out(schema: Schema, keywords: list[str]) -> None:
    for keyword in keywords:
        value = schema.pop(keyword)
        if keyword == "oneOf":
            schema["allOf"] = [*schema.get("allOf", []), {"anyOf": value}]


def _in_definitions(path: str) -> bool:
    return path.startswith(("/$defs/", "/definitions/"))
