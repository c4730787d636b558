"""The steps of curation, one after the other, with an account of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.config.steps import PiiType, StepName, StepsConfig
from posttrain.data.records import Record
from posttrain.data.rows.accounting import SourceCounts
from posttrain.data.rows.shelf import Shelf, Shelves
from posttrain.data.steps.agreement import annotators_agree
from posttrain.data.steps.contamination import contamination
from posttrain.data.steps.fates import StepResult, Surroundings
from posttrain.data.steps.language import language
from posttrain.data.steps.licence import licence
from posttrain.data.steps.mix import mix
from posttrain.data.steps.near_duplicates import near_duplicates
from posttrain.data.steps.pii import pii, redacted
from posttrain.data.steps.quality import quality
from posttrain.data.steps.trail import Trail

Step = Callable[[Sequence[Record], Any, Surroundings], StepResult]

STEPS: dict[StepName, Step] = {
    "licence": licence,
    "quality": quality,
    "language": language,
    "pii": pii,
    "contamination": contamination,
    "near_duplicate": near_duplicates,
    "agreement": annotators_agree,
    "mix": mix,
}
"""Every step by its name: from rows, its own knobs and what is known beside them, to what becomes of each row."""


def apply_steps(
    records: Shelf,
    shelves: Shelves,
    config: StepsConfig,
    around: Surroundings,
    counts: Mapping[str, SourceCounts],
    trail: Trail,
) -> tuple[Shelf, list[dict[str, Any]]]:
    """Return the rows that are left after all steps, and what each step did, by reason."""
    flow = []
    for name in config.order:
        result = STEPS[name](records, getattr(config, name), around)
        done: dict[str, Any] = {"step": name, "rows_in": len(records), "dropped": {}, "noted": {}}
        records = shelves.of(_account(name, result, counts, trail, done))
        flow.append(done | {"kept": len(records)} | ({"facts": result.facts} if result.facts else {}))
    return records, flow


def _account(
    name: str, result: StepResult, counts: Mapping[str, SourceCounts], trail: Trail, done: dict[str, Any]
) -> Iterator[Record]:
    for fate in result.fates:
        row = fate.row
        if fate.record is None:
            first = fate.findings[0]
            counts[row.source].drop(first.reason)
            trail.add("dropped", name, first.reason, row, first.lost_to)
            done["dropped"][first.reason] = done["dropped"].get(first.reason, 0) + 1
            continue
        for finding in fate.findings:
            counts[row.source].note(finding.reason)
            trail.add("noted" if fate.changed is None else "changed", name, finding.reason, row, finding.lost_to)
            done["noted"][finding.reason] = done["noted"].get(finding.reason, 0) + 1
        yield fate.record


def hidden_types(config: StepsConfig) -> list[PiiType]:
    """Return the types of personal data that no file of the dataset may hold."""
    return list(config.pii.types) if "pii" in config.order else []


def trail_of(path: Path, config: StepsConfig) -> Trail:
    """Return what writes the way of rows, where there are steps; what they hide is hidden in rows that drop, too."""
    hidden = hidden_types(config)
    return Trail(path if config.order else None, lambda record: redacted(record, hidden)[0] if hidden else record)
