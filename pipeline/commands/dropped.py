"""`posttrain show NAME --dropped REASON`: the rows that curation took out or changed, and what they lost to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.records import SPLITS
from posttrain.data.steps.trail import FILE, read_trail, said
from posttrain.pipeline.runs.store import find_artifact
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean

_LONGEST = 400
"""Characters of a row that are printed."""


def print_dropped(root: Path, text: str, reason: str, limit: int) -> int:
    """Print up to ``limit`` rows of a dataset that dropped, changed or were noted for ``reason``.

    Raises UsageError for an artifact without such an account, and for a reason that it does not have.
    """
    directory = find_artifact(root, text)
    if not (directory / FILE).exists():
        kind = read_manifest(directory).kind
        mend = "data=strict keeps them" if kind == "dataset" else "name a dataset"
        raise UsageError(f"{directory.name}: a {kind} without {FILE}, the rows that steps dropped; {mend}")
    counts = Counter(entry["reason"] for entry in read_trail(directory))
    if reason not in counts:
        known = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common()) or "none"
        raise UsageError(
            f"--dropped {reason}: no row of {directory.name} has that reason{did_you_mean(reason, counts)} ({known})"
        )
    shown = [entry for entry in read_trail(directory) if entry["reason"] == reason][:limit]
    kept = _kept(directory, {entry["lost_to"].get("id") for entry in shown})
    for entry in shown:
        print(_told(entry, kept))
    print(f"{len(shown)} of {counts[reason]:,} rows; all are in {directory / FILE}")
    return EXIT_DONE


def _told(entry: dict[str, Any], kept: dict[str, str]) -> str:
    lost_to = ", ".join(f"{name} {value}" for name, value in entry["lost_to"].items())
    lines = [
        f"{entry['id']}  {entry['what']} by {entry['step']}: {entry['reason']}" + (f"  ({lost_to})" if lost_to else "")
    ]
    if "row" in entry:
        lines.append(f"    row:  {_short(said(entry['row']))}")
    if (other := kept.get(entry["lost_to"].get("id", ""))) is not None:
        lines.append(f"    kept: {_short(other)}")
    return "\n".join(lines)


def _kept(directory: Path, ids: set[str | None]) -> dict[str, str]:
    """Return what the rows of a dataset with these ids say."""
    found: dict[str, str] = {}
    for split in SPLITS:
        for batch in pq.ParquetFile(directory / f"{split}.parquet").iter_batches():
            places = [place for place, name in enumerate(batch.column("id").to_pylist()) if name in ids]
            found |= {row["id"]: said(row) for row in batch.take(places).to_pylist()} if places else {}
    return found


def _short(text: str) -> str:
    flat = " ⏎ ".join(text.splitlines())
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 1]}…"
