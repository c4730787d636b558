"""The steps of curation, one after the other, with an account of every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.config.steps import PiiType, StepName, StepsConfig
from posttrain.data.records import Record
from posttrain.data.rows.accounting import SourceCounts
from posttrain.data.steps.agreement import annotators_agree
from posttrain.data.steps.contamination import contamination
from posttrain.data.steps.fates import StepResult, Surroundings
from posttrain.data.steps.language import language
from posttrain.data.steps.licence import licence
from posttrain.data.steps.mix import mix
from posttrain.data.steps.near_duplicates import near_duplicates
from posttrain.data.steps.pii import pii, redacted
from posttrain.data.steps.quality import quality
from posttrain.data.steps.trail import Trail, row_of

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
    records: list[Record],
    config: StepsConfig,
    around: Surroundings,
    counts: Mapping[str, SourceCounts],
    trail: Trail,
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Return the rows that are left after all steps, and what each step did, by reason."""
    flow = []
    for name in config.order:
        result = STEPS[name](records, getattr(config, name), around)
        done: dict[str, Any] = {"step": name, "rows_in": len(records), "dropped": {}, "noted": {}}
        records = _account(name, records, result, counts, trail, done)
        flow.append(done | {"kept": len(records)} | ({"facts": result.facts} if result.facts else {}))
    return records, flow


def _account(
    name: str,
    records: Sequence[Record],
    result: StepResult,
    counts: Mapping[str, SourceCounts],
    trail: Trail,
    done: dict[str, Any],
) -> list[Record]:
    kept = []
    for record, fate in zip(records, result.fates, strict=True):
        if fate.record is None:
            first = fate.findings[0]
            counts[record.source].drop(first.reason)
            trail.add("dropped", name, first.reason, record, first.lost_to)
            done["dropped"][first.reason] = done["dropped"].get(first.reason, 0) + 1
            continue
        for finding in fate.findings:
            counts[record.source].note(finding.reason)
            trail.add("noted" if fate.record is record else "changed", name, finding.reason, record, finding.lost_to)
            done["noted"][finding.reason] = done["noted"].get(finding.reason, 0) + 1
        kept.append(fate.record)
    return kept


def hidden_types(config: StepsConfig) -> list[PiiType]:
    """Return the types of personal data that no file of the dataset may hold."""
    return list(config.pii.types) if "pii" in config.order else []


def write_trail(path: Path, trail: Trail, hidden: Sequence[PiiType]) -> None:
    """Write what became of rows as JSON lines; what is hidden in the dataset is hidden in the rows that dropped too."""
    with path.open("w", encoding="utf-8") as lines:
        for entry, record in trail.entries():
            if record is not None:
                entry = entry | {"row": row_of(redacted(record, hidden)[0] if hidden else record)}
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
