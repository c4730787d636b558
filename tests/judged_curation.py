"""Curate planted rows with all steps, and count what was found and what was taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curated_data import Curated, curate, source
from planted_rows import Planted
from planted_texts import PII

from posttrain.data.steps.trail import read_trail

ORDER = ["quality", "language", "pii", "contamination", "near_duplicate"]
AIMS = {
    "exact": 0.99, "near": 0.98, "leak": 0.99, "short_leak": 0.99, **{f"pii_{kind}": 0.97 for kind in PII},
    "template": 0.01, "look_alike_item": 0.0, **{f"like_{kind}": 0.03 for kind in PII}, "plain": 0.001,
}  # fmt: skip
"""Least share that must be found of what is there, and the most that may be of what only looks like it."""
HARMLESS = ("template", "look_alike_item", "plain", *(f"like_{kind}" for kind in PII))


def curated(folder: Path, rows: Planted, **knobs: Any) -> Curated:
    """Return the dataset of planted rows and their evaluation items."""
    (folder / "items").mkdir(parents=True)
    asked = source(folder, "items", rows.items, license="MIT")
    items = curate(folder / "items", "evaluation", [asked])
    made = source(folder, "rows", rows.rows, license="MIT")
    steps = {"order": ORDER, "quality": {"refusals": "drop"}}
    return curate(folder, "demonstration", [made], {"items": items}, steps=steps, eval_fraction=0, **knobs)


def shares(rows: Planted, made: Curated) -> dict[str, tuple[float, int, list[str]]]:
    """Return by kind the share that was found, or taken for something, its number of rows, and the ids in question."""
    kept = {record.id.partition("/")[2]: record for record in made.train}
    lost = {entry["id"].partition("/")[2]: entry for entry in read_trail(made.output) if entry["what"] == "dropped"}
    by_kind: dict[str, list[str]] = {kind: rows.of(kind) for kind in AIMS if kind != "plain"}
    by_kind["plain"] = [row["id"] for row in rows.rows if row["id"] not in rows.kinds]
    result = {}
    for kind, names in by_kind.items():
        hit = [name for name in names if _found(kind, name, rows, kept, lost)]
        odd = hit if kind in HARMLESS else sorted({*names} - {*hit})
        result[kind] = (len(hit) / len(names), len(names), odd)
    return result


def _found(kind: str, name: str, rows: Planted, kept: dict[str, Any], lost: dict[str, Any]) -> bool:
    if kind.startswith(("pii_", "like_")):
        return name in lost or rows.secrets[name] not in kept[name].completion[0].content
    reasons = {"leak": ("contaminated",), "short_leak": ("contaminated",), "exact": ("duplicate", "near_duplicate")}
    return name in lost and lost[name]["reason"].startswith(reasons.get(kind, ("",)))


def missed(kind: str, share: float) -> bool:
    """Return whether a share is not what it should be."""
    return share > AIMS[kind] if kind in HARMLESS else share < AIMS[kind]
