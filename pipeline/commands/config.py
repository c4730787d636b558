"""`posttrain config`: what the knobs are, what a recipe sets them to, and where each value comes from."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.config.compose import compose_config, compose_values
from posttrain.pipeline.config.origins import leaves, origins
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.knobs import Knob, all_knobs
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean
from posttrain.stage.foreign import foreign_hint

DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value that is composed, and where it comes from."""

    key: str
    value: Any
    origin: str


def print_config(words: list[str], config_dir: Path | None, as_json: bool) -> int:
    """Print knobs, or what a recipe sets; ``words`` are a key or its beginning, and overrides.

    Raises UsageError for a key that no knob has, and for what cannot be composed.
    """
    keys = [word for word in words if "=" not in word and not word.startswith("~")]
    overrides = [word for word in words if word not in keys]
    if len(keys) > 1:
        raise UsageError(f"config {' '.join(keys)}: several keys; give one, or the beginning that they share")
    key = keys[0].rstrip(".") if keys else ""
    knobs = knobs_at(key) if key else []
    settings = [one for one in settings_of(overrides, config_dir) if _is_at(one.key, key)] if overrides else []
    if as_json:
        said = {"knobs": [*map(dataclasses.asdict, knobs)], "settings": [*map(dataclasses.asdict, settings)]}
        print(json.dumps(said, ensure_ascii=False))
    elif not key and not overrides:
        print(f"{len(all_knobs())} knobs. posttrain config KEY says what one is, or all below a key such as train.dpo;")
        print("posttrain config recipe=NAME … says what is composed, and where each value comes from. docs/knobs.md")
    else:
        _print(knobs, settings)
    return EXIT_DONE


def knobs_at(key: str) -> list[Knob]:
    """Return the knob of a key, or those below it; raise UsageError with the nearest one when there is none."""
    knobs = all_knobs()
    by_type = re.sub(r"\.\d+(?=\.|$)", ".0", re.sub(r"^stages\.[\w-]+\.", "stages.NAME.", key))
    found = [knob for knob in knobs if _is_at(knob.key, by_type)]
    if not found:
        alike = [knob.key for knob in knobs if knob.key.rpartition(".")[2] == key.rpartition(".")[2]]
        meant = f"; did you mean {', '.join(alike[:4])}?" if alike else did_you_mean(key, [knob.key for knob in knobs])
        raise UsageError(f"{key}: no such knob{foreign_hint(key, None) or meant}")
    return found


def settings_of(overrides: list[str], config_dir: Path | None) -> list[Setting]:
    """Return every value that something sets, in the order of the configuration; raise UsageError for a wrong one."""
    build_graph(compose_config(overrides, config_dir))
    values, said = compose_values(overrides, config_dir), origins(overrides, config_dir)
    return [Setting(key, value, _origin(key, said)) for key, value in leaves(values)]


def _origin(key: str, said: dict[str, str]) -> str:
    parts = key.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((said[name] for name in above if name in said), DEFAULT)


def _is_at(key: str, wanted: str) -> bool:
    return not wanted or key == wanted or key.startswith(f"{wanted}.")


def _print(knobs: list[Knob], settings: list[Setting]) -> None:
    console = console_for_tables()
    if len(knobs) == 1:
        (knob,) = knobs
        print(f"{knob.key}\n  {knob.words}\n")
        rows = {"takes": knob.kind, "range": knob.range, "unit": knob.unit, "default": knob.default or "none: give it"}
        rows |= {"example": knob.example, "speed only": "yes: what it changes runs nothing again" if knob.speed else ""}
        for name, value in rows.items():
            if value:
                print(f"  {name:<11}{value}")
        print("  docs       docs/knobs.md")
    elif knobs:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("knob", "default", "takes", "what it does"):
            table.add_column(heading, overflow="fold")
        for knob in knobs:
            kind = ", ".join(filter(None, [knob.kind, knob.range, knob.unit]))
            table.add_row(*map(escape, (knob.key, knob.default, kind, knob.words)))
        console.print(table)
    if settings:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("value", "", "from"):
            table.add_column(heading, overflow="fold")
        for one in settings:
            table.add_row(*map(escape, (one.key, json.dumps(one.value, ensure_ascii=False), one.origin)))
        console.print(table)
