"""Calls of tools in a response: are they the wanted ones, and do they fit what the tools take?"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonschema_rs

from posttrain.data.checks.documents import json_objects, no_constant, same_json
from posttrain.stage.errors import UsageError

_NAMED_BEFORE = re.compile(
    r"(?:to=functions\.(?P<channel>[\w.-]+)[^{]*?<\|message\|>|function(?:<｜tool▁sep｜>)?(?P<fenced>[\w.-]+)\n```json\n)(?={)"
)
"""What names a function before its arguments: gpt-oss's channels, and DeepSeek's fences."""


class Call(NamedTuple):
    """A function and its arguments."""

    name: str
    arguments: Any


def calls_in(response: str) -> list[Call]:
    """Return the calls of a response, in order, in any form that chat templates write.

    Those are JSON objects with a name and ``arguments`` or ``parameters``, alone, in lists or in tags, and arguments
    behind the function's name.
    """
    decoder = json.JSONDecoder(parse_constant=no_constant)
    named = []
    for found in _NAMED_BEFORE.finditer(response):
        try:
            arguments, _ = decoder.raw_decode(response, found.end())
        except (ValueError, RecursionError):
            continue
        named.append(Call(found["channel"] or found["fenced"], arguments))
    return named or [call for document in json_objects(response) for call in _read(document)]


def _read(document: Any) -> Iterator[Call]:
    inner = document.get("function") if isinstance(document, dict) else None
    function = inner if isinstance(inner, dict) else document
    key = next((key for key in ("arguments", "parameters") if key in function), None)
    if isinstance(function.get("name"), str) and key is not None:
        arguments = function[key]
        try:
            yield Call(function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments)
        except ValueError:
            yield Call(function["name"], arguments)


def calls_as_wanted(response: str, reference: str) -> float:
    """Return 1 when the response makes exactly the reference's calls, in any order; of none, when it makes none."""
    left = list(parse_wanted(reference))
    for call in calls_in(response):
        place = next((n for n, one in enumerate(left) if _same(one, call)), None)
        if place is None:
            return 0.0
        del left[place]
    return float(not left)


def _same(one: Call, other: Call) -> bool:
    return one.name == other.name and same_json(one.arguments, other.arguments)


def calls_that_fit(response: str, reference: str) -> float:
    """Return 1 when the response calls, and all its calls name a tool of the reference and fit its parameters."""
    tools = parse_tools(reference)
    calls = calls_in(response)
    return float(
        bool(calls) and all(call.name in tools and tools[call.name].is_valid(call.arguments) for call in calls)
    )


@functools.lru_cache(maxsize=1024)
def parse_wanted(reference: str) -> tuple[Call, ...]:
    """Return the calls of a reference. Raises UsageError where it is no JSON list of calls."""
    calls = _json_list(reference, "calls")
    if not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        raise UsageError(f"reference {reference[:60]!r}: each call needs name and arguments; write them")
    return tuple(Call(call["name"], call["arguments"]) for call in calls)


@functools.lru_cache(maxsize=1024)
def parse_tools(reference: str) -> dict[str, Any]:
    """Return a validator of arguments for each tool. Raises UsageError where it is no JSON list of definitions."""
    found = {}
    for tool in _json_list(reference, "tool definitions"):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f"reference {reference[:60]!r}: each definition needs a name; write it")
        try:
            found[function["name"]] = jsonschema_rs.validator_for(function.get("parameters") or {"type": "object"})
        except ValueError as error:
            raise UsageError(f"reference: the parameters of {function['name']} are no JSON Schema ({error})") from None
    return found


def _json_list(reference: str, what: str) -> list[Any]:
    try:
        values = json.loads(reference)
    except ValueError as error:
        raise UsageError(f"reference {reference[:60]!r}: no JSON ({error}); give a list of {what}") from None
    if not isinstance(values, list):
        raise UsageError(f"reference {reference[:60]!r}: give a JSON list of {what}")
    return values
