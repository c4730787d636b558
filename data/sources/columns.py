"""The columns of a source: under which names they are read, and which of those that nobody reads look like content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain.data.sources.adapters import known_columns
from posttrain.data.sources.near_misses import SYNONYMS
from posttrain.data.sources.readers import BadRow, Rows
from posttrain.data.sources.row_values import json_list, show
from posttrain.data.sources.turns import is_absent
from posttrain.stage.errors import UsageError, did_you_mean

_LONG_TEXT = 100
"""Characters from which on a text is content rather than a name or a label."""


def renamed(rows: Rows, columns: Mapping[str, str], ignore: Sequence[str], path: str) -> Rows:
    """Yield rows with the columns that a source's knobs name: ``columns`` maps the name to read to the file's own.

    Raises UsageError for a name that no adapter reads, for a column that the first row lacks, for one that would stand
    twice, and where no row has a column to ignore.
    """
    for name in columns:
        if name not in known_columns():
            raise UsageError(
                f"{path}: columns.{name}: no adapter reads a column of this name{did_you_mean(name, known_columns())}"
            )
    absent = set(ignore)
    is_first = True
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        if is_first:
            _check(row.values, columns, ignore, f"{path}{row.position}")
            seen, is_first = set(row.values), False
        absent -= row.values.keys()
        yield replace(row, values=_rename(row.values, columns, ignore))
    if absent and not is_first:
        name = min(absent)
        raise UsageError(f"{path}: ignore: no row has a column {name!r}{did_you_mean(name, seen)}")


def reshaped(rows: Rows, function: Callable[[dict[str, Any]], Any], name: str) -> Rows:
    """Yield rows with the columns that a user's function makes of theirs; where it fails, or makes none, a bad row."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            made = function(dict(row.values))
        except Exception as error:
            yield BadRow(row.position, f"{name} raised {type(error).__name__}: {error}", row.values)
            continue
        if isinstance(made, dict) and made:
            yield replace(row, values=made)
        else:
            yield BadRow(row.position, f"{name} returned {show(made)}; return the columns of a row", row.values)


def _rename(values: Mapping[str, Any], columns: Mapping[str, str], ignore: Sequence[str]) -> dict[str, Any]:
    moved = {name: values[own] for name, own in columns.items() if own in values}
    gone = {*ignore, *columns.values()}
    return {name: value for name, value in values.items() if name not in gone} | moved


def _check(values: Mapping[str, Any], columns: Mapping[str, str], ignore: Sequence[str], where: str) -> None:
    for name, own in columns.items():
        if own not in values:
            raise UsageError(f"{where}: columns.{name}: no column {own!r}{did_you_mean(own, values)}")
        if name in values and name not in columns.values() and name not in ignore:
            raise UsageError(
                f"{where}: columns.{name}: there is a column {name!r} besides {own!r}; add it to ignore, or rename it"
            )


def is_content(name: str, value: Any) -> bool:
    """Return whether an ignored column looks as if a model should learn from it, rather than an id, score or label.

    It does where it is named as a column of some adapter, and where it holds a long text, messages, or a list of them.
    """
    if is_absent(value):
        return False
    return (isinstance(value, str) and name in _CONTENT_NAMES) or _is_long(json_list(value))


def _is_long(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) >= _LONG_TEXT and len(value.split()) > 1
    if isinstance(value, list):
        return any(map(_is_long, value))
    return isinstance(value, dict) and any({"content", "value", "text"} & value.keys()) and len(value) > 1


_CONTENT_NAMES = frozenset(
    {
        *SYNONYMS,
        *(name for names in SYNONYMS.values() for name in names),
        "chain_of_thought",
        "cot",
        "document",
        "documents",
        "explanation",
        "passage",
        "persona",
        "rationale",
        "system_message",
        "thoughts",
    }
) - {"label", "rank", "ranking", "rankings", "ranks"}
