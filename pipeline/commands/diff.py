"""`posttrain diff`: in what two runs differ: their knobs value by value, and what their stages came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_stages
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.artifact import Manifest
from posttrain.stage.errors import EXIT_DONE
from posttrain.stage.files import read_state
from posttrain.stage.spec import StageSpec


def print_diff(root: Path, first: str, second: str, as_json: bool) -> int:
    """Print in what two runs differ, those knobs alone that are part of a key; raise UsageError for an unknown run."""
    runs = find_run(root, first), find_run(root, second)
    knobs = knob_differences(_identity(runs[0]), _identity(runs[1]))
    results = result_differences(_made(runs[0]), _made(runs[1]))
    if as_json:
        names = [run.name for run in runs]
        print(json.dumps({"runs": names, "knobs": knobs, "results": results}, ensure_ascii=False))
        return EXIT_DONE
    console = console_for_tables()
    for title, rows in (("knob", knobs), ("result", results)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in (title, runs[0].name, runs[1].name):
            table.add_column(heading, overflow="fold")
        for name, values in rows.items():
            table.add_row(*map(escape, (name, *(_shown(value) for value in values))))
        console.print(table if rows else f"{title}s: no difference")
    return EXIT_DONE


def knob_differences(first: Any, second: Any, where: str = "") -> dict[str, list[Any]]:
    """Return the values of both sides by dotted key, where they differ; None is what a side lacks."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return {} if first == second else {where: [first, second]}
    found: dict[str, list[Any]] = {}
    for key in dict.fromkeys([*first, *second]):
        found |= knob_differences(first.get(key), second.get(key), f"{where}.{key}".lstrip("."))
    return found


def result_differences(first: dict[str, Manifest], second: dict[str, Manifest]) -> dict[str, list[Any]]:
    """Return what each stage came to on both sides, where they are not the same artifact."""
    names = dict.fromkeys([*first, *second])
    sides = {name: [side.get(name) for side in (first, second)] for name in names}
    digests = {name: [each and each.digest for each in both] for name, both in sides.items()}
    return {
        name: [each and (each.headline or each.key[:12]) for each in both]
        for name, both in sides.items()
        if digests[name][0] != digests[name][1]
    }


def _identity(run: RunDirectory) -> dict[str, Any]:
    values = read_state(run.identity, 1, "the same `posttrain run` writes it again")
    return {key: value for key, value in values.items() if key != "version"}


def _made(run: RunDirectory) -> dict[str, Manifest]:
    specs = {name: StageSpec.read(path) for name in read_stages(run) if (path := run.spec(name)).exists()}
    return {name: made.manifest for name, spec in specs.items() if (made := committed(spec)) is not None}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "—" if value is None else json.dumps(value, ensure_ascii=False)
