"""Rows whose licence, or the terms of the model that wrote them, do not allow what the dataset is made for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.data.config.steps import LicenceConfig
from posttrain.data.records import Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings
from posttrain.stage.errors import UsageError


def licence(records: Sequence[Record], knobs: LicenceConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: what the policy does not know or allow drops.

    Raises UsageError for the first such row where that is to be an error.
    """
    facts: dict[str, Any] = {"use": knobs.use, "rows": {}}
    return StepResult(_fates(records, knobs, around, facts), facts)


def _fates(
    records: Sequence[Record], knobs: LicenceConfig, around: Surroundings, facts: dict[str, Any]
) -> Iterator[Fate]:
    allow = {name.casefold(): frozenset(uses) for name, uses in knobs.allow.items()}
    rows: Counter[str] = Counter()
    for record in records:
        rows[f"{record.source}: {record.license}"] += 1
        terms = around.source_facts.get(record.source, {})
        found = None if knobs.use is None else forbidden(record.license, terms, knobs.use, allow)
        if found is not None and knobs.use is not None and knobs.on_forbidden == "error":
            raise UsageError(_told(record, found, knobs.use))
        yield Fate(record) if found is None else Fate(record, (found,), drops=True)
    facts["rows"] = dict(sorted(rows.items()))


def forbidden(
    licence_of_row: str, source: Mapping[str, Any], use: str, allow: Mapping[str, frozenset[str]]
) -> Finding | None:
    """Return why a row may not be used, or None; what is not known is not allowed."""
    lost_to = {"license": licence_of_row, "use": use}
    if source.get("generator") is not None:
        uses = source.get("generator_uses")
        if uses is None or use not in uses:
            reason = "generator_unknown" if uses is None else "generator_forbidden"
            return Finding(reason, {"generator": source["generator"], "use": use})
    if use in (source.get("uses") or ()):
        return None
    uses_of = _uses(licence_of_row, allow)
    if uses_of is None:
        return Finding("licence_unknown", lost_to)
    return None if use in uses_of else Finding("licence_forbidden", lost_to)


def _uses(expression: str, allow: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """Return what an SPDX expression of AND and OR allows, None where no alternative is known."""
    alternatives = []
    for alternative in expression.strip("() ").split(" OR "):
        parts = [allow.get(part.strip("() ").casefold()) for part in alternative.split(" AND ")]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            alternatives.append(frozenset.intersection(*known))
    return frozenset.union(*alternatives) if alternatives else None


def _told(record: Record, found: Finding, use: str) -> str:
    what = found.lost_to.get("license") or found.lost_to.get("generator")
    if found.reason.startswith("generator"):
        mend = f"set its generator_uses=[{use}] if the terms of {what} allow that"
    elif found.reason == "licence_unknown":
        mend = f"set its license=SPDX-ID, or uses=[{use}] if its owner allows that"
    else:
        mend = f"set its uses=[{use}] if its owner allows that"
    reason = found.reason.replace("_", " ")
    return (
        f"source {record.source!r}: {reason}: {what!r} for use={use}; {mend}, take the source out, or "
        "set data.curate.steps.licence.on_forbidden=drop"
    )
