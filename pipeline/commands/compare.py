"""`posttrain compare`: what paired statistics say of two runs, models or evaluations on the items they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.runs.resolve import Made, committed
from posttrain.pipeline.runs.rundir import LATEST, RunDirectory, find_run, read_stages, runs_in
from posttrain.pipeline.runs.store import find_artifact, manifests_beside
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.files import write_text_atomic
from posttrain.stage.spec import StageSpec

if TYPE_CHECKING:
    from posttrain.evaluate.page.two_sides import Comparison

EVALUATIONS = ("evaluate.policy", "evaluate.drift")
"""Stages that score items."""
NUMBERS = ("may hide", "won", "lost", "items", "questions", "p")
HEADINGS = ("metric", "where", "first", "second", "difference", "reading", *NUMBERS)

Pairs = list[tuple[str, Path, Path]]
"""What is compared by name, and the two evaluations."""


def print_comparison(root: Path, first: str, second: str, confidence: float, as_json: bool, html: Path | None) -> int:
    """Print what became of the items that two sides share; with ``html``, write it as a page too.

    Raises UsageError when a side is unknown or was not evaluated, or the two share nothing.
    """
    from posttrain.evaluate.page.two_sides import compare_evaluations

    if not 0 < confidence < 1:
        raise UsageError(f"--confidence={confidence}: give a share between 0 and 1, such as 0.95")
    pairs = evaluations_of(root, first, second)
    found = [compare_evaluations(name, (first, one), (second, other), confidence) for name, one, other in pairs]
    if html is not None:
        from posttrain.evaluate.page.compare_page import render_comparisons

        write_text_atomic(html, render_comparisons(f"{first} and {second}", found, confidence))
    if as_json:
        said = {"first": first, "second": second, "confidence": confidence}
        print(json.dumps(said | {"comparisons": [one.as_dict() for one in found]}, ensure_ascii=False))
        return EXIT_DONE
    console = console_for_tables()
    for one in found:
        _print(console, one, confidence)
    if html is not None:
        console.print(f"page: {html}", soft_wrap=True, highlight=False)
    return EXIT_DONE


def evaluations_of(root: Path, first: str, second: str) -> Pairs:
    """Return the evaluations of two runs stage by stage, or of two models or artifacts, in pairs of one kind."""
    runs = [_run(root, text) for text in (first, second)]
    if runs[0] is not None and runs[1] is not None:
        return _of_runs(runs[0], runs[1])
    if any(runs):
        one, other = (first, second) if runs[0] is not None else (second, first)
        raise UsageError(f"compare: {one} is a run and {other} an artifact; give RUN/STAGE, or two runs")
    return _of_artifacts(find_artifact(root, first), find_artifact(root, second))


def _run(root: Path, text: str) -> RunDirectory | None:
    return find_run(root, text) if text == LATEST or text in {run.name for run in runs_in(root)} else None


def _of_runs(first: RunDirectory, second: RunDirectory) -> Pairs:
    sides = [_evaluated(run) for run in (first, second)]
    pairs = [(name, made.directory, sides[1][name].directory) for name, made in sides[0].items() if name in sides[1]]
    if not pairs:
        said = "; ".join(
            f"{run.name}: {', '.join(side) or 'none'}" for run, side in zip((first, second), sides, strict=True)
        )
        raise UsageError(
            f"compare: the two runs have no finished evaluation of one name; {said}; give RUN/STAGE of each"
        )
    return pairs


def _evaluated(run: RunDirectory) -> dict[str, Made]:
    specs = {name: StageSpec.read(path) for name in read_stages(run) if (path := run.spec(name)).exists()}
    made = {name: committed(spec) for name, spec in specs.items() if spec.run in EVALUATIONS}
    return {name: one for name, one in made.items() if one is not None}


def _of_artifacts(first: Path, second: Path) -> Pairs:
    sides = [_evaluations_about(directory) for directory in (first, second)]
    pairs = [
        (_title(one), directory, other_directory)
        for directory, one in sides[0].items()
        for other_directory, other in sides[1].items()
        if one.run == other.run and _asked(one) == _asked(other)
    ]
    if pairs:
        return list({name: (name, one, other) for name, one, other in pairs}.values())
    if all(len(side) == 1 for side in sides):
        (one, said), (other, _) = (*sides[0].items(), *sides[1].items())
        return [(_title(said), one, other)]
    known = "; ".join(
        f"{path.name}: {', '.join(each.name for each in side)}"
        for path, side in zip((first, second), sides, strict=True)
    )
    raise UsageError(f"compare: no two evaluations are on the same items; name one of each: {known}")


def _asked(manifest: Manifest) -> tuple[str, ...]:
    return tuple(manifest.parents[name].digest for name in ("items", "data") if name in manifest.parents)


def _title(manifest: Manifest) -> str:
    items = manifest.parents.get("items")
    return manifest.run if items is None else f"{manifest.run} on {items.name}"


def _evaluations_about(directory: Path) -> dict[Path, Manifest]:
    """Return an evaluation itself, or the evaluations in the store of a model with these contents."""
    manifest = read_manifest(directory)
    if manifest.run in EVALUATIONS:
        return {directory: manifest}
    found = {
        path: each
        for path, each in manifests_beside(directory).items()
        if each.run in EVALUATIONS and "model" in each.parents and each.parents["model"].digest == manifest.digest
    }
    if not found:
        raise UsageError(
            f"compare: {directory.name} is a {manifest.kind} that no evaluation of {directory.parent} is about; "
            "give a model with an evaluate.policy stage behind it"
        )
    return found


def _print(console: Console, found: Comparison, confidence: float) -> None:
    from posttrain.evaluate.page.compare import METRIC_NAMES
    from posttrain.evaluate.page.two_sides import reading

    console.print(f"[bold]{escape(found.name)}[/bold]: {escape(found.first)} → {escape(found.second)}", soft_wrap=True)
    for line in found.notes():
        console.print(escape(line), soft_wrap=True, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", justify="right" if heading in NUMBERS else "left")
    for group, rows in (("", found.overall), ("task", found.by_task), ("language", found.by_language)):
        for row in rows:
            where = str(row[group]) if group else "all"
            cells = [METRIC_NAMES[row["metric"]], where, *_figures(row, reading(row, confidence))]
            table.add_row(*map(escape, cells))
    if found.overall:
        console.print(table)


def _figures(row: dict[str, Any], said: str) -> list[str]:
    p_value = row.get("adjusted", row["p_value"])
    return [
        f"{row['was']:.3f}",
        f"{row['now']:.3f}",
        f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        said,
        f"{row['detectable']:.3f}",
        str(row.get("won", "")),
        str(row.get("lost", "")),
        str(row["n"]),
        str(row["clusters"]),
        "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}",
    ]
