"""`posttrain show`: what an artifact is, and the tree of what it was made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from posttrain.pipeline.runs.store import find_artifact
from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.record import read_record, records_of
from posttrain.stage.wording import duration

TEMPLATE = "chat_template"
"""The fact of a base model that says what its chat template does."""


def print_artifact(root: Path, text: str, as_json: bool = False) -> int:
    """Print the manifest and the lineage of an artifact."""
    directory = find_artifact(root, text)
    manifest = read_manifest(directory)
    if as_json:
        records = [read_record(path) for path in records_of(directory)]
        said = {"directory": str(directory), **dataclasses.asdict(manifest), "records": records}
        print(json.dumps(said, ensure_ascii=False))
        return EXIT_DONE
    console = Console()
    console.print(_summary(directory, manifest))
    console.print(lineage_tree(directory, manifest))
    return EXIT_DONE


def _summary(directory: Path, manifest: Manifest) -> Table:
    size = sum(entry["bytes"] for entry in manifest.files.values())
    rows = {
        "artifact": str(directory),
        "kind": manifest.kind,
        "stage": f"{manifest.stage} ({manifest.run})",
        "result": manifest.headline,
        "metrics": _pairs(manifest.metrics),
        "facts": _pairs({name: value for name, value in manifest.facts.items() if name != TEMPLATE}),
        "chat template": _template(manifest.facts.get(TEMPLATE, {})),
        "config": _pairs(manifest.config),
        "seed": str(manifest.seed),
        "key": manifest.key,
        "digest": manifest.digest,
        "code": manifest.code_digest,
        "files": f"{len(manifest.files)}, {size / 1e6:,.1f} MB",
        "made": f"{manifest.created} in {duration(manifest.wall_seconds)}",
        "hardware": _pairs(manifest.hardware),
        "packages": _pairs(manifest.packages),
        "licenses": ", ".join(manifest.licenses),
        "records": "; ".join(_record(path) for path in records_of(directory)),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _template(facts: Mapping[str, Any]) -> str:
    """Return what a model's chat template does with each thing, a line each, and what was fixed in it."""
    fixed = _pairs({name: facts.get(name) for name in ("arguments", "date")})
    lines = [f"{thing}: {what}" for thing, what in facts.get("behaviour", {}).items()]
    return "\n".join([fixed] * bool(fixed) + lines)


def _record(path: Path) -> str:
    record = read_record(path)
    return f"{record['what']} {record['created']}: {record.get('because', '')}"


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items() if value is not None)


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def lineage_tree(directory: Path, manifest: Manifest) -> Tree:
    """Return the tree of an artifact and everything that it was made from; what stands above is not repeated."""
    tree = Tree(_line(directory.name, manifest.kind, manifest.digest))
    _grow(tree, directory.parent, manifest, set())
    return tree


def _grow(tree: Tree, store: Path, manifest: Manifest, seen: set[str]) -> None:
    for name, parent in manifest.parents.items():
        label = f"{name}: {_line(parent.name, parent.kind, parent.digest)}"
        try:
            above = read_manifest(store / parent.name)
        except UsageError:
            tree.add(f"{label}  [red]missing[/red]")
            continue
        changed = "  [red]now another digest[/red]" if above.digest != parent.digest else ""
        repeated = "  (above)" if parent.name in seen and above.parents else ""
        branch = tree.add(f"{label}{changed}{repeated}")
        if not repeated:
            seen.add(parent.name)
            _grow(branch, store, above, seen)


def _line(name: str, kind: str, digest: str) -> str:
    return f"[bold]{escape(name)}[/bold]  {escape(kind)}  {digest[:12]}"
