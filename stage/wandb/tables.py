"""What an artifact's `summary.json` looks like as tables and numbers of W&B."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LEVELS = 2


def tables(summary: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the tables in a `summary.json`, by their path in it; none when there is no such file.

    A table is a list of objects, or an object whose name begins with ``by_``: a row per group. Values nested in a row
    become columns with dotted names. Only the first two levels count: what a report holds below them repeats the
    tables of other stages.
    """
    if not summary.is_file():
        return {}
    return dict(_tables(json.loads(summary.read_text(encoding="utf-8")), ""))


def _tables(value: Any, path: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    name = path.rpartition("/")[2]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        yield path, [flat(row) for row in value]
    elif isinstance(value, dict) and name.startswith("by_"):
        yield path, list(_group_rows(value, name.removeprefix("by_").split("_and_")))
    elif isinstance(value, dict) and path.count("/") < LEVELS - 1:
        for key, below in value.items():
            yield from _tables(below, f"{path}/{key}".lstrip("/"))


def _group_rows(groups: Mapping[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a row per group; ``by_task_and_language`` has groups of groups."""
    for group, values in groups.items():
        if len(names) > 1:
            yield from ({names[0]: group, **row} for row in _group_rows(values, names[1:]))
        else:
            yield {names[0]: group, **flat(values)}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested objects as one with dotted names; lists become JSON text."""
    if isinstance(value, Mapping):
        return {name: leaf for key, below in value.items() for name, leaf in flat(below, f"{path}.{key}").items()}
    return {path.lstrip("."): json.dumps(value) if isinstance(value, list) else value}


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Return the numbers of nested objects with dotted names below ``path``."""
    leaves = flat(value, path).items()
    return {name: leaf for name, leaf in leaves if isinstance(leaf, int | float) and not isinstance(leaf, bool)}
