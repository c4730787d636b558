"""Turns sources into one dataset: reads, adapts, validates, drops duplicates, and holds prompts out.

    python -m posttrain.data.curate output=DIR record_type=demonstration 'sources=[{name: mine, path: mine.jsonl}]'

A row goes through these steps, and each step that takes it out counts it under its reason:

1. The reader and the adapter refuse malformed rows: an error with ``file:line``, or `quarantined`. The adapter also
   drops rows that are sound but of no use, under its own reasons.
2. Comparisons lose empty responses, and repeated ones, of which the best rank stays. Groups with fewer than two left
   drop as `empty_response` or `identical_responses`, and groups without any preference as `all_tied`. Pairs whose own
   scores say the contrary stay, and are counted as `rejected_scored_higher`.
3. Prompts are held out (`posttrain.data.rows.splits`): `held_out_prompt`. Every input besides ``sources`` is a dataset
   that was curated before: a prompt keeps the side that it has there, or drops (`trained_on_prompt` where it should be
   held out), and what its evaluation items ask is not trained on: `evaluation_item`.
4. Exact duplicates drop as `duplicate`; the first, in the order of the sources, stays. Answers that unpaired rows label
   both ways stay, and are counted as `labelled_both_ways`.
5. Where ``steps.order`` names some, the steps of `posttrain.data.steps`; what became of each row then stands in
   ``dropped.jsonl``, with what it lost to.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data.config.curate import CurateConfig, RecordType, SourceConfig
from posttrain.data.records import RECORD_TYPES, Comparison, EvaluationItem, Record, Split, write_dataset
from posttrain.data.rows.accounting import SourceCounts, accounting, row_metrics, told
from posttrain.data.rows.contradictions import labelled_both_ways
from posttrain.data.rows.earlier import Earlier, asks_an_item, read_earlier
from posttrain.data.rows.identity import content_digest
from posttrain.data.rows.shelf import Shelf, Shelves
from posttrain.data.rows.splits import Excluded, assign_splits, cluster_digest, prompt_cluster
from posttrain.data.sources.adapters_comparisons import rejected_scored_higher
from posttrain.data.sources.convert import RecordMaker
from posttrain.data.sources.origins import choose_adapter, open_source
from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, RowError
from posttrain.data.steps.apply import apply_steps, hidden_types, trail_of
from posttrain.data.steps.contamination import read_items
from posttrain.data.steps.fates import Surroundings
from posttrain.data.steps.pii import redacted_values
from posttrain.data.steps.trail import FILE, Trail
from posttrain.data.steps.workers import Workers
from posttrain.stage import heartbeat
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)

SET_ASIDE = "on_bad_row=quarantine sets bad rows aside"
"""What else to do about a bad row than to mend it."""
CONTRADICTED = "rejected_scored_higher"
"""What is noted of a comparison whose own scores say the contrary of chosen and rejected."""
CALLS_IN_TEXT = "calls_in_text"
"""What is noted of a row whose tools and calls stood as marked text, which was read."""
ITEM = "in_evaluation_items"
"""Why a training row drops, or is noted: it asks what an evaluation item of the pipeline asks."""


@dataclass
class Curation:
    """What has been read so far, and what became of every row."""

    records: Shelf
    counts: dict[str, SourceCounts] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By source: the adapter, and what was left out of rows that stayed."""
    quarantined: list[dict[str, Any]] = field(default_factory=list)


def run(config: CurateConfig, context: Context) -> StageResult:
    """Write the dataset, its accounting and, where rows were quarantined, quarantine.jsonl."""
    shelves = Shelves(context.work / "rows", RECORD_TYPES[config.record_type])
    curation = Curation(shelves.empty())
    before = {name: path for name, path in context.inputs.items() if name != "sources"}
    earlier = read_earlier(before)
    for source in config.sources:
        read_source(source, context.inputs.get("sources"), config.record_type, config.on_bad_row, curation)
    wanted = {source.name: source.split for source in config.sources}
    placed = assign_splits(curation.records, wanted, config.eval_fraction, config.split_seed, earlier.sides)
    counts = curation.counts
    with Workers(config.num_workers) as workers, trail_of(context.output / FILE, config.steps) as trail:
        kept = hold_out(curation.records, placed, counts, trail)
        kept = hold_items_out(kept, earlier, config.item_overlap, counts, trail)
        if config.dedup:
            kept = drop_duplicates(kept, counts, trail)
        ids: list[str] = []
        records = shelves.of(_with_ids_told(kept, ids))
        if len({*ids}) < len(ids):
            records = shelves.of(with_unique_ids(records, ids))
        around = _surroundings(config, before, workers)
        records, flow = apply_steps(records, shelves, config.steps, around, counts, trail)
    if not records:
        summary = accounting(counts)
        raise UsageError(f"no row kept of {summary['rows_in']} (dropped: {summary['dropped']}); mend the sources")
    if config.record_type == "unpaired":
        note_contradictions(records, counts)
    found: dict[str, Counter[str]] = {}
    write_dataset(context.output, _counted(records, counts, found), RECORD_TYPES[config.record_type])
    shelves.remove()
    licences = {source: dict(sorted(of_source.items())) for source, of_source in sorted(found.items())}
    summary = accounting(counts)
    if config.steps.order:
        summary["flow"] = flow
    write_json_atomic(context.output / "accounting.json", summary)
    if curation.quarantined:
        hidden = hidden_types(config.steps)
        lines = (json.dumps(redacted_values(row, hidden), default=str) + "\n" for row in curation.quarantined)
        (context.output / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
    return dataclasses.replace(_result(licences, summary, curation.facts), consulted=list(before))


def _counted(
    records: Iterable[Record], counts: Mapping[str, SourceCounts], licences: dict[str, Counter[str]]
) -> Iterator[Record]:
    """Yield every row once it is counted as kept, and under its source and licence."""
    for record in records:
        counts[record.source].keep(record.split)
        licences.setdefault(record.source, Counter())[record.license] += 1
        yield record


def _surroundings(config: CurateConfig, before: dict[str, Path], workers: Workers) -> Surroundings:
    items = read_items(before) if "contamination" in config.steps.order else []
    return Surroundings(items, workers, {source.name: terms_of(source) for source in config.sources})


def terms_of(source: SourceConfig) -> dict[str, Any]:
    """Return what a source's configuration says of where it comes from and what it may be used for."""
    names = ("url", "published_revision", "generator", "generator_uses", "uses")
    return {name: value for name in names if (value := getattr(source, name)) is not None}


def _result(
    licences: Mapping[str, Mapping[str, int]], summary: dict[str, Any], facts: dict[str, dict[str, Any]]
) -> StageResult:
    metrics = row_metrics(summary)
    all_trained = metrics["train_rows"] and not metrics["eval_rows"]
    for name, counts in summary["by_source"].items():
        log.info("%s: %s of %s rows kept; %s", name, counts["kept"], counts["rows_in"], facts[name])
    return StageResult(
        metrics=metrics,
        headline=told(summary) + (", nothing held out" if all_trained else "") + not_used(summary),
        licenses=sorted({name for of_source in licences.values() for name in of_source}),
        facts={"accounting": summary, "sources": facts, "licenses": licences},
    )


def not_used(summary: Mapping[str, Any]) -> str:
    """Return the end of the headline that names the columns of content which nobody uses, or an empty text."""
    by_source = [counts.get("ignored_content", {}) for counts in summary["by_source"].values()]
    names = list(dict.fromkeys(name for columns in by_source for name in columns))
    further = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; not used: {', '.join(names[:3])}{further}" if names else ""


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
    maker = RecordMaker(adapter, record_type, source.name, defaults, source.scorer, source.ids == "error")
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
                raise UsageError(f"{path}{unit.position}: {error} ({SET_ASIDE})") from None
            curation.quarantined.append(quarantined(source.name, path, unit, str(error)))
            made = Drop("quarantined")
        if isinstance(made, Drop):
            counts.drop(made.reason)
            continue
        curation.records.append(made)
        if isinstance(made, Comparison) and isinstance(unit, Row) and rejected_scored_higher(unit.values):
            if not counts.noted[CONTRADICTED]:
                log.warning(
                    "%s%s: score_chosen is below score_rejected; such rows stay and are counted", path, unit.position
                )
            counts.note(CONTRADICTED)
    if not counts.rows_in:
        raise UsageError(f"{path}: nothing in it for {record_type} records; leave the source out")
    counts.ignored_columns, counts.ignored_content = maker.ignored_columns, maker.ignored_content
    if maker.ignored_content:
        names = ", ".join(f"{name} ({rows:,} rows)" for name, rows in maker.ignored_content.most_common())
        log.warning("%s: columns that look like content, which adapter %r does not use: %s", path, adapter.name, names)
    if maker.read_from_text:
        counts.noted[CALLS_IN_TEXT] = maker.read_from_text
    omitted = {"ignored_columns": dict(maker.ignored_columns), "responses_removed": dict(maker.responses_removed)}
    curation.facts[source.name] = {
        "adapter": adapter.name,
        **{name: value for name, value in omitted.items() if value},
        **terms_of(source),
    }


def check_id(record: Record, position: str, places: dict[str, tuple[str, str]]) -> None:
    """Raise RowError when the row's own id already names another content; ``places`` remembers ids of the source."""
    digest = content_digest(record)
    known_digest, known_position = places.setdefault(record.id, (digest, position))
    if known_digest != digest:
        own = record.id.removeprefix(f"{record.source}/")
        raise RowError(
            f"id {own!r}: already used at {known_position.lstrip(':/')} for another row; ids must differ, or ids=ignore"
        )


def quarantined(source: str, path: str, unit: Row | BadRow, reason: str) -> dict[str, Any]:
    """Return the quarantine's line for a row; the place has no folders, so that moving a file changes no artifact."""
    row = unit.raw if isinstance(unit, BadRow) else unit.values
    place = unit.position.removeprefix("/") if unit.position.startswith("/") else f"{Path(path).name}{unit.position}"
    return {"source": source, "place": place, "reason": reason, "row": row}


def hold_out(
    records: Iterable[Record], sides: Sequence[Split | Excluded], counts: Mapping[str, SourceCounts], trail: Trail
) -> Iterator[Record]:
    """Yield the records with their split set, without those that are on neither side."""
    for record, side in zip(records, sides, strict=True):
        if isinstance(side, Excluded):
            counts[record.source].drop(side.value)
            trail.add("dropped", "split", side.value, record, {"prompt": cluster_digest(prompt_cluster(record)).hex()})
        else:
            record.split = side
            yield record


def hold_items_out(
    records: Iterable[Record], earlier: Earlier, overlap: str, counts: Mapping[str, SourceCounts], trail: Trail
) -> Iterator[Record]:
    """Yield the records without those to train on that ask what an evaluation item asks; kept ones are noted.

    Raises UsageError at the end, where that is to be an error, and where nothing is left to train on.
    """
    rows = trained_on = asking = 0
    first = ""
    for record in records:
        rows += 1
        trained = record.split == "train" and not isinstance(record, EvaluationItem)
        asks = trained and bool(earlier.asked) and asks_an_item(record, earlier.asked)
        if asks:
            asking += 1
            first = first or record.id
        trained_on += record.split == "train" and not (asks and overlap != "keep")
        if not asks:
            yield record
        elif overlap == "keep":
            counts[record.source].note(ITEM)
            yield record
        else:
            counts[record.source].drop(ITEM)
            trail.add("dropped", "items", ITEM, record, {"item_overlap": overlap})
    found = f"{asking} of {rows} rows ask what evaluation items of this pipeline ask"
    if asking and overlap == "error":
        raise UsageError(f"{found}, first {first}; take them out, or set data.curate.item_overlap=exclude")
    if asking and not trained_on:
        raise UsageError(
            f"{found}, and no other row is left to train on; give other items, or set data.curate.item_overlap=keep"
        )
    if asking:
        log.warning("%s, first %s; data.curate.item_overlap=%s", found, first, overlap)


def drop_duplicates(records: Iterable[Record], counts: Mapping[str, SourceCounts], trail: Trail) -> Iterator[Record]:
    """Yield the records without those whose content an earlier one has."""
    seen: dict[str, str] = {}
    for record in records:
        heartbeat.pulse()
        digest = content_digest(record)
        if digest in seen:
            counts[record.source].drop("duplicate")
            trail.add("dropped", "duplicate", "duplicate", record, {"id": seen[digest]})
        else:
            seen[digest] = record.id
            yield record


def note_contradictions(records: Iterable[Record], counts: Mapping[str, SourceCounts]) -> None:
    """Count, and say, which answers are labelled both ways."""
    for name, rows in labelled_both_ways(records).items():
        log.warning("%s: %d rows have an answer that is labelled both ways; they stay and are counted", name, rows)
        counts[name].noted["labelled_both_ways"] = rows


def _with_ids_told(records: Iterable[Record], ids: list[str]) -> Iterator[Record]:
    for record in records:
        ids.append(record.id)
        yield record


def with_unique_ids(records: Iterable[Record], ids: Iterable[str]) -> Iterator[Record]:
    """Yield the records with the ids numbered that repeat.

    The first record of an id keeps it, and no number makes an id that another has.
    """
    taken = {*ids}
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
        yield record


if __name__ == "__main__":
    stage_main(run, CurateConfig, kind="dataset")
