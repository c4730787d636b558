"""What adapters read out of rows: checked texts and JSON values, and the two ways of refusing a row.

Refusals say value, requirement and fix; the place is added by the caller, who knows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.sources import json_text

Values = Mapping[str, Any]
"""The columns of one row."""
Payload = dict[str, Any]
"""What an adapter makes of a row: the fields of a record, without provenance."""


class RowError(ValueError):
    """The row has the wrong shape: the user must mend it, or let it be quarantined."""


@dataclass(frozen=True)
class Drop:
    """The row is well-formed but of no use; it is counted under this reason."""

    reason: str


def show(value: Any) -> str:
    """Return a value for an error line, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def given(row: Values, name: str) -> Any:
    """Return a column that a row may leave out, or None: a blank text, as CSV writes it, and NaN are no values."""
    value = row.get(name)
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if isinstance(value, str) and not value.strip() else value


def checked_text(value: Any, where: str) -> str:
    """Return the value, which must be a text with something to read in it.

    Raises RowError for another type, an empty or blank text, NUL, or half a surrogate pair.
    """
    text = any_text(value, where)
    if not text.strip():
        raise RowError(f"{where} {show(value)}: empty content; write a text or remove the row")
    return text


def any_text(value: Any, where: str) -> str:
    """Return the value, which must be a text, maybe an empty one."""
    if not isinstance(value, str):
        raise RowError(f"{where} {show(value)}: must be a text, not {type(value).__name__}; convert it")
    if "\0" in value:
        raise RowError(f"{where} {show(value)}: holds a NUL character; remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"{where} {show(value)}: holds half a surrogate pair; write whole characters") from None
    return value


def json_value(value: Any, where: str) -> Any:
    """Return what a value says that may be JSON text, as cells of CSV hold it. Raises RowError for broken JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json_text.parse_value(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} {show(value)}: {json_text.reason(error)}") from None


def json_list(value: Any) -> Any:
    """Return the list that a text is as JSON, and every other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json_text.parse_value(value)
        except (ValueError, RecursionError):
            return value
    return value


def checked_json(value: Any, where: str) -> Any:
    """Return the value, which must be one that JSON can write. Raises RowError that names the part that is not."""
    if isinstance(value, dict):
        return {any_text(key, where): checked_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [checked_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):
        return any_text(value, where)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise RowError(f"{where} {show(value)}: not a value of JSON; write a text, a finite number, a list or an object")
