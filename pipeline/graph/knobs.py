"""Every knob of the pipeline and its stages, read from the schemas: default, range, unit, words and an example."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.registry import STAGE_TYPES

UNITS = {
    "seconds": "seconds",
    "tokens": "tokens",
    "length": "tokens",
    "steps": "optimizer steps",
    "epochs": "passes",
    "fraction": "share, 0 to 1",
    "share": "share, 0 to 1",
    "kl": "nats",
    "entropy": "nats",
    "processes": "processes",
    "nodes": "machines",
    "rows": "rows",
    "samples": "responses",
    "workers": "processes",
}
"""What a knob is counted in, by the last word of its name."""


@dataclasses.dataclass(frozen=True)
class Knob:
    """One knob, as a person would look it up."""

    key: str
    """Below the root of the configuration, such as ``train.dpo.beta``; ``NAME`` and ``0`` stand for any."""
    kind: str
    """What values it takes: ``integer``, ``true or false``, ``sigmoid | ipo``, ``list of text`` …"""
    default: str
    """As it is written on the command line; empty where it must be given."""
    range: str
    unit: str
    words: str
    speed: bool
    """Whether it changes speed or memory alone, and so runs nothing again."""
    example: str
    """A word for the command line, with another value than the default."""


def all_knobs() -> list[Knob]:
    """Return the knobs of the pipeline, then those of every stage type; nodes that hold others are not among them."""
    stages = (knob for run, stage_type in STAGE_TYPES.items() for knob in knobs_of(stage_type.schema(), f"{run}."))
    nodes = {run.partition(".")[0] for run in STAGE_TYPES}
    own = [knob for knob in knobs_of(PipelineConfig) if knob.key.partition(".")[0] not in nodes]
    return [*own, *stages]


def knobs_of(schema: Any, prefix: str = "") -> Iterator[Knob]:
    """Yield the knobs of a schema and of those within it, with a prefix before their keys."""
    hints = typing.get_type_hints(schema, include_extras=True)
    words = words_of(schema)
    for name, info in schema.__pydantic_fields__.items():
        key = f"{prefix}{info.alias or name}"
        below = _inner(hints[name])
        if below is not None:
            yield from knobs_of(below[0], f"{key}.{below[1]}")
        if below is None or below[1]:
            yield _knob(key, hints[name], info, words[name])


def words_of(schema: Any) -> dict[str, str]:
    """Return what the docstrings of a schema's knobs say, of those that it inherits too.

    They are read from its source when they are asked for: a command that shows none need not wait for it.
    """
    words: dict[str, str] = {}
    for part in reversed(schema.__mro__):
        if "__pydantic_fields__" not in vars(part):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        for knob, text in itertools.pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            if isinstance(knob, ast.AnnAssign) and isinstance(knob.target, ast.Name) and isinstance(text, ast.Expr):
                words[knob.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return words


def _inner(hint: Any) -> tuple[Any, str] | None:
    """Return the schema within an annotation and what stands for its place in a list or dictionary, or None."""
    if hasattr(hint, "__pydantic_fields__"):
        return hint, ""
    found = [inner for part in typing.get_args(hint) if (inner := _inner(part)) is not None]
    if not found:
        return None
    place = {list: "0.", dict: "NAME."}.get(typing.get_origin(hint), "")
    return found[0][0], f"{place}{found[0][1]}"


def _knob(key: str, hint: Any, info: Any, words: str) -> Knob:
    name = key.rpartition(".")[2]
    marks = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    shown = "" if default is PydanticUndefined or info.is_required() else _written(default)
    counted = _kind(hint) in ("integer", "number", "integer or null", "number or null")
    unit = next((unit for word, unit in UNITS.items() if name.rpartition("_")[2] == word), "") if counted else ""
    example = f"{key}={_another(hint, default, info.metadata)}"
    return Knob(key, _kind(hint), shown, _range(info.metadata), unit, words, bool(marks.get("speed")), example)


def _another(hint: Any, default: Any, metadata: list[Any]) -> str:
    """Return a value that a knob takes, other than its default."""
    if choices := [choice for choice in _choices(hint) if choice != _written(default)]:
        return choices[0]
    kind = _kind(hint)
    limits = {name: value for mark in metadata for name in ("ge", "gt", "lt", "le") if (value := _limit(mark, name))}
    if kind.startswith("integer"):
        return str(2 * default if isinstance(default, int) and default > 0 else max(limits.get("ge", 0), 2))
    if kind.startswith("number"):
        most = min(limits.get("lt", 2.0), limits.get("le", 2.0), 2.0) if default is None or default < 2 else default
        least = max(limits.get("ge", 0.0), limits.get("gt", 0.0))
        half = default / 2 if isinstance(default, float) else 0.0
        return f"{half if half > least else (least + max(most, least + 1) if least >= most else least + most) / 2:g}"
    if kind.startswith("list of"):
        return "[…]"
    return "{…}" if kind.startswith("{") else "…"


def _limit(mark: Any, name: str) -> float | None:
    value = getattr(mark, name, None)
    return value if isinstance(value, (int, float)) else None


def _written(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """Return what a schema holds that differs from its defaults, such as a reward's kind."""
    fields = type(value).__pydantic_fields__.items()
    return {name: getattr(value, name) for name, info in fields if getattr(value, name) != info.get_default()}


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return tuple(str(value) for value in typing.get_args(hint))
    if hint is bool:
        return ("true", "false")
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    return tuple(choice for part in parts for choice in _choices(part))


def _kind(hint: Any) -> str:
    """Return what an annotation takes, in words."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any value"}
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in names:
        return names[hint]
    if origin is typing.Literal:
        return " | ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in parts))
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin is list:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return f"{{name: {_kind(parts[1])}}}"
    return "knobs" if hasattr(hint, "__pydantic_fields__") else getattr(hint, "__name__", str(hint))


def _range(metadata: list[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least", "pattern": "matches"}
    found = [
        f"{sign} {limit}"
        for mark in metadata
        for name, sign in signs.items()
        if (limit := getattr(mark, name, None)) is not None
    ]
    return ", ".join(found)
