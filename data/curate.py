"""Turns sources into one dataset: reads, adapts, validates, drops duplicates, and holds prompts out.

    python -m posttrain.data.curate output=DIR record_type=demonstration 'sources=[{name: mine, path: mine.jsonl}]'

A row goes through these steps, and each step that takes it out counts it under its reason:

1. The reader and the adapter refuse malformed rows: an error with ``file:line``, or `quarantined`. The adapter also
   drops rows that are sound but of no use, under its own reasons.
2. Comparisons lose empty responses, and repeated ones, of which the best rank stays. Groups with fewer than two left
   drop as `empty_response` or `identical_responses`, and groups without any preference as `all_tied`. Pairs whose own
   scores say the contrary stay, and are counted as `rejected_scored_higher`.
3. Prompts are held out (`posttrain.data.rows.splits`): `held_out_prompt`.
4. Exact duplicates drop as `duplicate`; the first, in the order of the sources, stays. Answers that unpaired rows label
   both ways stay, and are counted as `labelled_both_ways`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from posttrain.data.checks.scorers import SCORERS
from posttrain.data.config.curate import CurateConfig, RecordType, SourceConfig
from posttrain.data.records import RECORD_TYPES, Comparison, Record, write_dataset
from posttrain.data.rows.accounting import SourceCounts, accounting
from posttrain.data.rows.contradictions import labelled_both_ways
from posttrain.data.rows.identity import content_digest
from posttrain.data.rows.splits import HELD_OUT, assign_splits
from posttrain.data.sources.adapters import ADAPTERS, Adapter, detect
from posttrain.data.sources.adapters_comparisons import rejected_scored_higher
from posttrain.data.sources.convert import RecordMaker
from posttrain.data.sources.readers import BadRow, Row, Rows, read_hub_dataset, read_rows
from posttrain.data.sources.row_values import Drop, RowError
from posttrain.stage import heartbeat
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)


@dataclass
class Curation:
    """What has been read so far, and what became of every row."""

    records: list[Record] = field(default_factory=list)
    counts: dict[str, SourceCounts] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By source: the adapter, and what was left out of rows that stayed."""
    quarantined: list[dict[str, Any]] = field(default_factory=list)


def run(config: CurateConfig, context: Context) -> StageResult:
    """Write the dataset, its accounting and, where rows were quarantined, quarantine.jsonl."""
    curation = Curation()
    for source in config.sources:
        read_source(source, context.inputs.get("sources"), config.record_type, config.on_bad_row, curation)
    wanted = {source.name: source.split for source in config.sources}
    records = hold_out(curation.records, wanted, config.eval_fraction, config.split_seed, curation.counts)
    if config.dedup:
        records = drop_duplicates(records, curation.counts)
    note_contradictions(records, curation.counts)
    make_ids_unique(records)
    for record in records:
        curation.counts[record.source].keep(record.split)
    summary = accounting(curation.counts)
    if not records:
        raise UsageError(f"no row kept of {summary['rows_in']} (dropped: {summary['dropped']}); mend the sources")
    write_dataset(context.output, records, RECORD_TYPES[config.record_type])
    write_json_atomic(context.output / "accounting.json", summary)
    if curation.quarantined:
        lines = (json.dumps(row, default=str) + "\n" for row in curation.quarantined)
        (context.output / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
    return _result(records, summary, curation.facts)


def _result(records: Sequence[Record], summary: dict[str, Any], facts: dict[str, dict[str, Any]]) -> StageResult:
    sides = Counter(record.split for record in records)
    for name, counts in summary["by_source"].items():
        log.info("%s: %s of %s rows kept; %s", name, counts["kept"], counts["rows_in"], facts[name])
    return StageResult(
        metrics={
            "rows_in": summary["rows_in"],
            "rows_kept": summary["kept"],
            "rows_dropped": summary["rows_in"] - summary["kept"],
            "train_rows": sides["train"],
            "eval_rows": sides["eval"],
        },
        headline=f"{summary['kept']:,} rows kept of {summary['rows_in']:,}",
        licenses=sorted({record.license for record in records}),
        facts={"accounting": summary, "sources": facts},
    )


def read_source(
    source: SourceConfig, inputs: Path | None, record_type: RecordType, on_bad_row: str, curation: Curation
) -> None:
    """Add the records of one source to ``curation``, and count every row that drops.

    Raises UsageError, with the place, for a source that cannot be read, and for its first bad row unless bad rows go
    into quarantine.
    """
    rows, path = open_source(source, inputs)
    adapter, rows = choose_adapter(source.adapter, rows, path, record_type)
    defaults = {"license": source.license, "language": source.language, "task": source.task}
    maker = RecordMaker(adapter, record_type, source.name, defaults, source.scorer)
    counts = curation.counts[source.name] = SourceCounts()
    places: dict[str, tuple[str, str]] = {}
    for unit in islice(adapter.units(rows, record_type), source.limit):
        counts.rows_in += 1
        heartbeat.pulse()
        try:
            made = maker.make(unit)
            if isinstance(made, Record):
                check_id(made, unit.position, places)
        except RowError as error:
            if on_bad_row == "error":
                raise UsageError(f"{path}{unit.position}: {error}") from None
            curation.quarantined.append(quarantined(source.name, path, unit, str(error)))
            made = Drop("quarantined")
        if isinstance(made, Drop):
            counts.drop(made.reason)
            continue
        curation.records.append(made)
        if isinstance(made, Comparison) and isinstance(unit, Row) and rejected_scored_higher(unit.values):
            if not counts.rejected_scored_higher:
                log.warning(
                    "%s%s: score_chosen is below score_rejected; such rows stay and are counted", path, unit.position
                )
            counts.rejected_scored_higher += 1
    if not counts.rows_in:
        raise UsageError(f"{path}: nothing in it for {record_type} records; leave the source out")
    omitted = {"ignored_columns": dict(maker.ignored_columns), "responses_removed": dict(maker.responses_removed)}
    curation.facts[source.name] = {"adapter": adapter.name, **{name: value for name, value in omitted.items() if value}}


def open_source(source: SourceConfig, inputs: Path | None) -> tuple[Rows, str]:
    """Return the rows of a source and the path or name to show in errors; ``inputs`` is the artifact of sources."""
    if source.scorer is not None and source.scorer not in SCORERS:
        choices = ", ".join(SCORERS)
        raise UsageError(f"source {source.name!r}: scorer {source.scorer!r} must be one of {choices}; rename it")
    if source.dataset is not None:
        rows = read_hub_dataset(source.dataset, source.subset, source.dataset_split, source.revision)
        return rows, source.dataset
    if source.path is not None:
        return read_rows(Path(source.path)), source.path
    if inputs is None:
        raise UsageError(f"source {source.name!r}: file {source.file!r} needs inputs.sources; give it, or give path")
    path = inputs / str(source.file)
    if not path.exists():
        known = sorted(entry.name for entry in inputs.iterdir())
        raise UsageError(f"source {source.name!r}: no file {source.file!r} in {inputs}{did_you_mean(path.name, known)}")
    return read_rows(path), str(path)


def choose_adapter(name: str, rows: Rows, path: str, record_type: RecordType) -> tuple[Adapter, Rows]:
    """Return the adapter of a source, recognised from its first good row if need be, and all its rows.

    Raises UsageError when no adapter fits, or the one named does not make the record type.
    """
    if name != "auto":
        ADAPTERS[name].converter(record_type)
        return ADAPTERS[name], rows
    seen: list[Row | BadRow] = []
    for row in rows:
        seen.append(row)
        if isinstance(row, Row):
            try:
                return detect(row.values, record_type), chain(seen, rows)
            except UsageError as error:
                raise UsageError(f"{path}{row.position}: {error}") from None
    reason = next(row.reason for row in seen if isinstance(row, BadRow))
    raise UsageError(f"{path}{seen[0].position}: {reason}; no row of the source is readable")


def check_id(record: Record, position: str, places: dict[str, tuple[str, str]]) -> None:
    """Raise RowError when the row's own id already names another content; ``places`` remembers ids of the source."""
    digest = content_digest(record)
    known_digest, known_position = places.setdefault(record.id, (digest, position))
    if known_digest != digest:
        own = record.id.removeprefix(f"{record.source}/")
        raise RowError(f"id {own!r}: already used at {known_position.lstrip(':')} for another row; ids must differ")


def quarantined(source: str, path: str, unit: Row | BadRow, reason: str) -> dict[str, Any]:
    """Return the quarantine's line for a row; the place has no folders, so that moving a file changes no artifact."""
    row = unit.raw if isinstance(unit, BadRow) else unit.values
    return {"source": source, "place": f"{Path(path).name}{unit.position}", "reason": reason, "row": row}


def hold_out(
    records: Sequence[Record],
    wanted: Mapping[str, str],
    eval_fraction: float,
    split_seed: int,
    counts: Mapping[str, SourceCounts],
) -> list[Record]:
    """Return the records with their split set, without those whose prompt is held out."""
    sides = assign_splits(records, [wanted[record.source] for record in records], eval_fraction, split_seed)
    kept = []
    for record, side in zip(records, sides, strict=True):
        if side is None:
            counts[record.source].drop(HELD_OUT)
        else:
            record.split = side
            kept.append(record)
    return kept


def drop_duplicates(records: Sequence[Record], counts: Mapping[str, SourceCounts]) -> list[Record]:
    """Return the records without those whose content an earlier one has."""
    seen: set[str] = set()
    kept = []
    for record in records:
        heartbeat.pulse()
        digest = content_digest(record)
        if digest in seen:
            counts[record.source].drop("duplicate")
        else:
            seen.add(digest)
            kept.append(record)
    return kept


def note_contradictions(records: Sequence[Record], counts: Mapping[str, SourceCounts]) -> None:
    """Count, and say, which answers are labelled both ways."""
    for name, rows in labelled_both_ways(records).items():
        log.warning("%s: %d rows have an answer that is labelled both ways; they stay and are counted", name, rows)
        counts[name].labelled_both_ways = rows


def make_ids_unique(records: Sequence[Record]) -> None:
    """Number the ids that repeat; the first record of an id keeps it, and no number makes an id that another has."""
    taken = {record.id for record in records}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for record in records:
        own = record.id
        if own in seen:
            numbers[own] += 1
            while (numbered := f"{own}-{numbers[own] + 1}") in taken:
                numbers[own] += 1
            record.id = numbered
            taken.add(numbered)
        seen.add(own)


if __name__ == "__main__":
    stage_main(run, CurateConfig, kind="dataset")
