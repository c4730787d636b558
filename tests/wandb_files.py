"""Reads the files of offline W&B runs with W&B's own program."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


def offline_files(work: Path) -> list[Path]:
    """Return the files of all offline runs below a work directory."""
    return sorted((work / "wandb").glob("offline-run-*/*.wandb"))


def records(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the records of a `.wandb` file: type and content."""
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(record["type"], record[record["type"]]) for record in found if record["type"] in record]


def history(file: Path) -> list[dict[str, float]]:
    """Return the logged rows in order, without W&B's own columns but with ``_step``."""
    rows = [content["item"] for kind, content in records(file) if kind == "history"]
    return [{k: v for k, v in row.items() if k == "_step" or not k.startswith("_")} for row in rows]


def merged(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the lines of a `metrics.jsonl` as W&B shows them: one row per step."""
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        values = {name: value for name, value in line.items() if name not in ("step", "seconds", "time")}
        rows.setdefault(line["step"], {"_step": line["step"]}).update(values)
    return list(rows.values())
