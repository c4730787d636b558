"""Answers that unpaired rows call desirable and undesirable at once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

from posttrain.data.records import Record, UnpairedPreference
from posttrain.data.rows.identity import answer_content, nfc


def labelled_both_ways(records: Iterable[Record]) -> Counter[str]:
    """Return how many rows of each source have an answer that another row labels the other way.

    People disagree, so such rows say something together: how likely an answer is desirable.
    """
    labels: dict[bytes, set[bool]] = {}
    said: list[tuple[str, bytes]] = []
    for record in records:
        if isinstance(record, UnpairedPreference):
            answer = _answer(record)
            said.append((record.source, answer))
            labels.setdefault(answer, set()).add(record.label)
    return Counter(source for source, answer in said if len(labels[answer]) == 2)


def _answer(record: UnpairedPreference) -> bytes:
    text = nfc(json.dumps(answer_content(record), ensure_ascii=False))
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
