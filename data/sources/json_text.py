"""JSON as rows hold it: no key twice, no byte order mark, and a reason with its column where it is broken."""

from __future__ import annotations

import json
from typing import Any, NoReturn

BOM = "\ufeff"
_BOM_REASON = "byte order mark; save the file as UTF-8 without BOM"


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its pairs. Raises ValueError for a key that stands twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice; keep one")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or a number")


ROWS = json.JSONDecoder(object_pairs_hook=unique_keys)
"""Takes NaN, which pandas writes for what is absent: what uses a value refuses it there."""
_VALUES = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_no_constant)


def parse_row(text: str) -> Any:
    """Return the value of a text that is a row. Raises ValueError or RecursionError."""
    if text.startswith(BOM):
        raise ValueError(_BOM_REASON)
    return ROWS.decode(text)


def parse_value(text: str) -> Any:
    """Return the value of a text that stands in a row, without NaN. Raises ValueError or RecursionError."""
    return _VALUES.decode(text.strip())


def reason(error: Exception) -> str:
    """Return why a text could not be parsed, and what to do."""
    if isinstance(error, RecursionError):
        return "nested too deeply; flatten it"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno}); mend it"
    return str(error)
