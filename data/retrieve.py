"""Put passages of a corpus into the prompts of a dataset.

    python -m posttrain.data.retrieve inputs.corpus=DIR inputs.data=DIR output=DIR passages=5

The corpus is a dataset of plain texts, so that licences, personal data and duplicates of it are curated as any other's.
Records of every type that has prompts stay what they are, but for the prompt; the references of evaluation items that
are judged by their sources (`posttrain.data.checks.sourced`) get the passages too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.chat.passages import one_paragraph, with_passages
from posttrain.data.checks.attribution import find_quote, quotes_of
from posttrain.data.checks.sourced import NAME, given_passages, parse_sources
from posttrain.data.config.retrieve import RetrieveConfig
from posttrain.data.corpus.bm25 import Bm25
from posttrain.data.corpus.cutting import passages_in
from posttrain.data.messages import Message, message_dicts
from posttrain.data.records import (
    SPLITS,
    Demonstration,
    EvaluationItem,
    Record,
    dataset_type,
    read_records,
    write_dataset,
)
from posttrain.data.rows.accounting import SourceCounts, accounting, row_metrics, told
from posttrain.stage import heartbeat
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)

NOTHING_FOUND, MISSED = "nothing_found", "gold_not_found"
"""Why a row drops, or what is noted of it: no passage shares a word with it; its passages do not hold the answer."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Passages with where they come from."""

    passages: list[str]
    licenses: list[str]
    documents: int


def run(config: RetrieveConfig, context: Context) -> StageResult:
    """Write the dataset with passages in its prompts, its accounting, and retrieval.json with the hit rate."""
    corpus = read_corpus(context.inputs["corpus"], config.passage_words)
    record_type = dataset_type(context.inputs["data"])
    records = [r for split in SPLITS for r in read_records(context.inputs["data"] / f"{split}.parquet", record_type)]
    index = Bm25(corpus.passages, config.k1, config.b)
    counts: dict[str, SourceCounts] = {}
    kept: list[Record] = []
    used: set[int] = set()
    found: Counter[str] = Counter()
    for record in records:
        heartbeat.pulse()
        own = counts.setdefault(record.source, SourceCounts())
        own.rows_in += 1
        if not getattr(record, "prompt", None):
            raise UsageError(f"inputs.data: {record.id} has no prompt to put passages before; give rows with prompts")
        places = [one.passage for one in index.search(question_of(record, config.question), config.passages)]
        passages = [corpus.passages[place] for place in places]
        if not passages:
            own.note(NOTHING_FOUND)
        hit = is_hit(record, passages)
        if hit is not None:
            found["known"] += 1
            found["hits"] += hit
        if hit is False and config.missed == "drop" and isinstance(record, Demonstration):
            own.drop(MISSED)
            continue
        if hit is False:
            own.note(MISSED)
        used.update(places)
        kept.append(with_sources(record, passages, config.instruction))
        own.keep(record.split)
    summary = accounting(counts)
    if not kept:
        raise UsageError(
            f"data.retrieve: no row kept of {len(records)} (dropped: {summary['dropped']}); give a corpus "
            "that holds what they quote, or missed=keep"
        )
    write_dataset(context.output, kept, record_type)
    write_json_atomic(context.output / "accounting.json", summary)
    rate = found["hits"] / found["known"] if found["known"] else None
    facts: dict[str, Any] = {"documents": corpus.documents, "passages": len(corpus.passages), "used": len(used)}
    facts |= {"known": found["known"], "hits": found["hits"], "hit_rate": rate}
    write_json_atomic(context.output / "retrieval.json", facts)
    return _result(kept, summary, facts, sorted({corpus.licenses[place] for place in used}))


def read_corpus(directory: Path, passage_words: int) -> Corpus:
    """Return the passages of both splits of a dataset of plain texts.

    Raises UsageError where it holds anything else, or nothing.
    """
    if dataset_type(directory) is not Demonstration:
        raise UsageError(f"inputs.corpus: {directory.name} holds no plain texts; curate such, as demonstrations")
    passages, licenses, documents = [], [], 0
    for split in SPLITS:
        for record in read_records(directory / f"{split}.parquet", Demonstration):
            if record.prompt:
                raise UsageError(f"inputs.corpus: {record.id} has a prompt; give plain texts alone")
            documents += 1
            for passage in passages_in(record.completion[-1].content, passage_words):
                passages.append(one_paragraph(passage))
                licenses.append(record.license)
    if not passages:
        raise UsageError(f"inputs.corpus: {directory.name} has no text; look at its accounting.json for where it went")
    return Corpus(passages, licenses, documents)


def question_of(record: Any, which: str) -> str:
    """Return what is searched for; empty where a prompt has no turn of the user's."""
    turns = [message.content for message in record.prompt if message.role == "user"]
    return "\n".join(turns if which == "conversation" else turns[-1:])


def is_hit(record: Record, passages: Sequence[str]) -> bool | None:
    """Return whether the passages hold all that is known to hold the answer; None where nothing is.

    An evaluation item that is judged by its sources says it itself (``gold``); a demonstration says it by its quotes.
    """
    gold = list(_gold(record))
    return all(find_quote(text, passages) for text in gold) if gold else None


def _gold(record: Record) -> Iterator[str]:
    if isinstance(record, EvaluationItem) and record.scorer == NAME:
        yield from parse_sources(record.reference).gold or []
    elif isinstance(record, Demonstration):
        yield from quotes_of(record.completion[-1].content)


def with_sources(record: Any, passages: Sequence[str], instruction: str) -> Record:
    """Return a record whose prompt carries passages, and its reference too where it is judged by them."""
    prompt = with_passages(message_dicts(record.prompt), passages, instruction)
    first = [Message(**message) for message in prompt[:1] if message["role"] == "system"]
    behind = record.prompt[1:] if record.prompt and record.prompt[0].role == "system" else record.prompt
    changed: dict[str, Any] = {"prompt": [*first, *behind]}
    if isinstance(record, EvaluationItem) and record.scorer == NAME:
        changed["reference"] = given_passages(record.reference, passages)
    copied: Record = record.model_copy(update=changed)
    return copied


def _result(records: Sequence[Record], summary: dict[str, Any], facts: dict[str, Any], used: list[str]) -> StageResult:
    rate = "" if facts["hit_rate"] is None else f", hit rate {facts['hit_rate']:.2f} of {facts['known']:,}"
    log.info("%s passages of %s documents", f"{facts['passages']:,}", f"{facts['documents']:,}")
    return StageResult(
        metrics={
            **row_metrics(summary),
            **{name: value for name, value in facts.items() if value is not None},
        },
        headline=told(summary) + rate,
        licenses=sorted({record.license for record in records} | {*used}),
        facts={"accounting": summary, "retrieval": facts},
    )


if __name__ == "__main__":
    stage_main(run, RetrieveConfig, kind="dataset")
