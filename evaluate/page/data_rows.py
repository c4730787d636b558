"""What the rows of a dataset are: languages, licences, lengths and tokens, read in batches."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data.records import SPLITS, Comparison, Record, each_record
from posttrain.data.steps.judgements import Judgement, judgements_of
from posttrain.data.steps.texts import texts_of

PERCENTILES = (5, 50, 95)
_BATCH = 512
"""Rows that are tokenized at once."""


@dataclasses.dataclass
class Rows:
    """What the kept rows of one dataset are."""

    languages: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """(Language, split) → rows."""
    licences: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """(Source, licence) → rows."""
    tasks: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """(Task, split) → rows."""
    characters: dict[tuple[str, str], list[int]] = dataclasses.field(default_factory=dict)
    """(Source, language) → characters of each row."""
    tokens: dict[tuple[str, str], list[int]] = dataclasses.field(default_factory=dict)
    """The same in tokens, where there is a tokenizer."""
    judgements: list[Judgement] = dataclasses.field(default_factory=list)
    """What annotators of comparisons say."""


def measure(directory: Path, record_type: type[Record], tokenizer: Any | None) -> Rows:
    """Return what the rows of both splits are; with a tokenizer of `tokenizers`, how many tokens they have as well.

    A row is its turns and, of a comparison, all responses, as plain text without a chat template.
    """
    found = Rows()
    rows = _each(directory, record_type)
    while batch := list(islice(rows, _BATCH)):
        texts = [texts_of(record).whole() for record in batch]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False) if tokenizer else [None] * len(texts)
        for record, text, encoding in zip(batch, texts, encoded, strict=True):
            found.languages[record.language, record.split] += 1
            found.licences[record.source, record.license] += 1
            found.tasks[record.task, record.split] += 1
            group = (record.source, record.language)
            found.characters.setdefault(group, []).append(len(text))
            if isinstance(record, Comparison):
                found.judgements += judgements_of(record)
            if encoding is not None:
                found.tokens.setdefault(group, []).append(len(encoding.ids))
    return found


def _each(directory: Path, record_type: type[Record]) -> Iterator[Record]:
    for split in SPLITS:
        yield from each_record(directory / f"{split}.parquet", record_type)


def by(lengths: dict[tuple[str, str], list[int]], part: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return the lengths of rows by source (part 0) or language (part 1), the group of most rows first."""
    groups: dict[str, list[int]] = {}
    for names, own in lengths.items():
        groups.setdefault(names[part], []).extend(own)
    ordered = sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return {name: np.array(own, dtype=np.int64) for name, own in ordered}


def figures(lengths: npt.NDArray[np.int64], limit: int | None = None) -> dict[str, Any]:
    """Return the sum, percentiles and maximum of lengths, and how many are over the limit, where there is one."""
    percentiles = {f"p{at}": float(np.percentile(lengths, at)) for at in PERCENTILES}
    told = {"rows": len(lengths), "total": int(lengths.sum()), **percentiles, "max": int(lengths.max())}
    return told | ({} if limit is None else {"over_limit": int((lengths > limit).sum())})
