"""Tools, calls and results that stand as marked text in conversations, as Hermes and Qwen models write them.

Definitions stand in the system turn as ``<tools>…</tools>``, calls in answers as ``<tool_call>{…}</tool_call>``, and
results in turns by tools as ``<tool_response>…</tool_response>``. Read into calls and definitions they can be rendered
by any template that knows tools. Where one call of a row cannot be read, the row stays the text that it is.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from posttrain.data.sources.calls import read_call, read_tools
from posttrain.data.sources.row_values import Payload, RowError, show
from posttrain.data.sources.turns import LEADING, Messages, Turn

_TOOLS = re.compile(r"<tools>((?:(?!<tools>).)*?)</tools>", re.DOTALL)
_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
_RESULT = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)
_PREAMBLE = re.compile(
    r"(?:# Tools\s+You may call one or more functions|You are a function[- ]calling AI model)"
    r".*<tools>.*</tools>(?:.*</tool_call>)?",
    re.DOTALL,
)
"""How templates introduce tools, up to the pattern of a call with which they end."""
_TURNS = ("prompt", "completion", "responses")


class _UnreadableError(Exception):
    """What looks like a call or a definition is none that can be read."""


def read_marked_text(payload: Payload) -> tuple[Payload, bool]:
    """Return the payload with its marked text as tools, calls and results, and whether there was any.

    Raises RowError where a system turn defines other tools than the row's own column.
    """
    try:
        read: Payload = {name: _turns(payload[name]) for name in _TURNS if name in payload}
        tools = [tool for turn in payload.get("prompt", []) if turn["role"] in LEADING for tool in _defined(turn)]
    except _UnreadableError:
        return payload, False
    if not tools and all(read[name] == payload[name] for name in read):
        return payload, False
    made = {**payload, **read}
    if tools:
        _check_same(tools, payload.get("tools"))
        made["tools"] = payload.get("tools") or tools
        made["prompt"] = [turn for turn in map(_without_tools, read["prompt"]) if turn is not None]
    return made, True


def _check_same(tools: list[Any], own: list[Any] | None) -> None:
    names, own_names = ([tool["function"]["name"] for tool in listed or []] for listed in (tools, own))
    if own_names and sorted(names) != sorted(own_names):
        raise RowError(f"tools {show(own_names)}: the system turn defines others, {show(names)}; keep one list")


def _defined(turn: Turn) -> list[dict[str, Any]]:
    """Return the tools that a system turn defines; what stands between the marks may also be an example, or empty."""
    for match in _TOOLS.finditer(turn["content"]):
        if match[1].strip():
            try:
                return read_tools(_values(match[1]), "tools")
            except RowError:
                raise _UnreadableError from None
    return []


def _without_tools(turn: Turn) -> Turn | None:
    """Return a system turn without its tools and what introduces them, or None where nothing else stands in it."""
    if turn["role"] not in LEADING or not _defined(turn):
        return turn
    text = _PREAMBLE.sub("", turn["content"])
    if text == turn["content"]:
        text = _TOOLS.sub(lambda match: "" if match[1].strip() else match[0], text)
    return {**turn, "content": text.strip()} if text.strip() else None


def _turns(turns: Messages) -> Messages:
    return [made for turn in turns for made in _structured(turn)]


def _structured(turn: Turn) -> Messages:
    text = turn["content"]
    if turn["role"] == "assistant" and "<tool_call>" in text and not turn.get("tool_calls"):
        said, mark, rest = text.partition("<tool_call>")
        calls = [_call(inner) for inner in _all_of(_CALL, mark + rest)]
        return [{**turn, "content": said.strip(), "tool_calls": calls}]
    if turn["role"] == "tool" and "<tool_response>" in text:
        return [{**turn, "content": inner.strip()} for inner in _all_of(_RESULT, text)]
    return [turn]


def _all_of(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return what stands in a text that is nothing but marked parts. Raises _UnreadableError for any other."""
    parts = pattern.findall(text)
    if pattern.sub("", text):
        raise _UnreadableError
    return parts


def _call(text: str) -> dict[str, Any]:
    values = _values(text)
    try:
        if len(values) != 1 or not isinstance(values[0], dict) or "name" not in values[0]:
            raise _UnreadableError
        return read_call(values[0], "tool_call")
    except RowError:
        raise _UnreadableError from None


def _values(text: str) -> list[Any]:
    """Return the values of a JSON list, of JSON values after one another, or of a list or object of Python."""
    text = text.strip()
    values: list[Any] = []
    at = 0
    decoder = json.JSONDecoder()
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values += value if isinstance(value, list) else [value]
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        return values
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise _UnreadableError from None
    return value if isinstance(value, list) else [value]
