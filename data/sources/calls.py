"""Calls of tools and definitions of tools, out of the forms that files have them in."""

from __future__ import annotations

from typing import Any

from posttrain.data.sources.row_values import RowError, checked_json, checked_text, json_value, show

Call = dict[str, Any]
"""The fields of a `posttrain.data.messages.ToolCall`."""

_CALL_KEYS = frozenset({"id", "type", "function", "name", "arguments", "parameters", "index"})
_FUNCTION_KEYS = frozenset({"name", "arguments", "parameters"})


def read_calls(value: Any, where: str) -> list[Call]:
    """Return the calls of a list, or of its JSON text: ``{"type": "function", "function": {…}}``, or ``{"name", …}``.

    Raises RowError for what is no such list, and for arguments that are no JSON object.
    """
    calls = json_value(value, where)
    if not isinstance(calls, list) or not calls:
        raise RowError(f"{where} {show(value)}: must be a list of calls with name and arguments")
    return [read_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]


def read_call(value: Any, where: str) -> Call:
    """Return one call; its arguments may be an object or, as the OpenAI interface gives them, JSON text."""
    call = json_value(value, where)
    if not isinstance(call, dict):
        raise RowError(f"{where} {show(value)}: must be an object with name and arguments")
    if call.get("type") not in (None, "function"):
        raise RowError(f"{where}.type {show(call['type'])}: only functions can be called; remove the row")
    function = call
    _refuse_keys(call, _CALL_KEYS, where)
    if call.get("function") is not None:
        where = f"{where}.function"
        function = call["function"]
        if not isinstance(function, dict):
            raise RowError(f"{where} {show(function)}: must be an object with name and arguments")
        _refuse_keys(function, _FUNCTION_KEYS, where)
    if function.get("name") is None:
        raise RowError(f"{where} {show(function)}: a call must name its function; give its name")
    name = next((key for key in ("arguments", "parameters") if function.get(key) is not None), "arguments")
    made = {
        "name": checked_text(function["name"], f"{where}.name"),
        "arguments": _arguments(function.get(name), f"{where}.{name}"),
    }
    own = call.get("id")
    return made if own is None or own == "" else {**made, "id": checked_text(own, f"{where}.id")}


def _refuse_keys(value: dict[str, Any], known: frozenset[str], where: str) -> None:
    for key, item in value.items():
        if key not in known and item is not None:
            raise RowError(f"{where}.{key} {show(item)}: a call holds name, arguments and id; remove it")


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    arguments = json_value(value, where)
    if not isinstance(arguments, dict):
        raise RowError(f"{where} {show(value)}: must be a JSON object; write {{…}}")
    checked: dict[str, Any] = checked_json(arguments, where)
    return checked


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """Return definitions of tools in the form of the OpenAI interface, out of a list, or its JSON text.

    A definition may stand alone, without ``{"type": "function"}`` around it. Raises RowError for everything else.
    """
    tools = json_value(value, where)
    if not isinstance(tools, list):
        raise RowError(f"{where} {show(value)}: must be a list of tool definitions")
    return [_tool(tool, f"{where}[{index}]") for index, tool in enumerate(tools)]


def _tool(value: Any, where: str) -> dict[str, Any]:
    tool = checked_json(json_value(value, where), where)
    if not isinstance(tool, dict):
        raise RowError(f"{where} {show(value)}: must be an object that defines a function")
    if tool.get("type") not in (None, "function"):
        raise RowError(f"{where}.type {show(tool['type'])}: only functions can be defined; remove it")
    function = tool.get("function")
    if function is None:
        function = {key: item for key, item in tool.items() if key not in ("type", "function")}
        if "input_schema" in function and "parameters" not in function:
            function["parameters"] = function.pop("input_schema")
        tool = {"type": "function", "function": function}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowError(f"{where} {show(value)}: a definition must name its function; give its name")
    return {"type": "function", **tool}
