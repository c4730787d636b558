"""What adapters read out of rows: checked texts and message lists, and the two ways of refusing a row.

Refusals say value, requirement and fix; the place is added by the caller, who knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
"""The columns of one row."""
Payload = dict[str, Any]
"""What an adapter makes of a row: the fields of a record, without provenance."""
Messages = list[dict[str, str]]


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
    """Return a column that a row may leave out, or None: a blank text, as CSV writes it, is no value."""
    value = row.get(name)
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


def checked_messages(value: Any, where: str) -> Messages:
    """Return the value, which must be a non-empty list of ``{"role": …, "content": …}``.

    Further keys must be null: dropping tool calls or names in silence would change what the message says.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"{where} {show(value)}: must be a non-empty list of messages with role and content")
    return [_message(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise RowError(f"{where} {show(value)}: must be an object with role and content")
    for key, extra in value.items():
        if key not in ("role", "content") and extra is not None:
            raise RowError(f"{where}.{key} {show(extra)}: messages hold role and content only; remove it")
    return {"role": value["role"], "content": checked_text(value["content"], f"{where}.content")}


def prompt_messages(value: Any, where: str) -> Messages:
    """Return a prompt: a text becomes one user turn, a list of messages stays."""
    return checked_messages(value, where) if isinstance(value, list) else [user(checked_text(value, where))]


def user(content: str) -> dict[str, str]:
    """Return a user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Return an assistant turn."""
    return {"role": "assistant", "content": content}
