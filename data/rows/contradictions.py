"""Answers that unpaired rows call desirable and undesirable at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from posttrain.data.records import Record, UnpairedPreference
from posttrain.data.rows.identity import answer_content, nfc


def labelled_both_ways(records: Sequence[Record]) -> Counter[str]:
    """Return how many rows of each source have an answer that another row labels the other way.

    People disagree, so such rows say something together: how likely an answer is desirable.
    """
    labels: dict[str, set[bool]] = {}
    said = [(record, _answer(record)) for record in records if isinstance(record, UnpairedPreference)]
    for record, answer in said:
        labels.setdefault(answer, set()).add(record.label)
    return Counter(record.source for record, answer in said if len(labels[answer]) == 2)


def _answer(record: UnpairedPreference) -> str:
    return nfc(json.dumps(answer_content(record), ensure_ascii=False))
