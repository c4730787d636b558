"""Unpaired preferences as a dataset, each with a response that answers another prompt.

Log-ratios of such mismatched responses are what the reference point of Kahneman-Tversky optimisation is a mean of. Who
gets whose response depends on the rows of the split alone, so that the reference can score them beforehand.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.train.rows.columns import Lists, Numbers, sizes
from posttrain.train.rows.dataset import as_dataset
from posttrain.train.rows.references import logps_of_responses

OWN, MISMATCHED = 0, 1
"""Numbers of a row's responses in the reference's table."""


def is_unpaired(directory: Path) -> bool:
    """Return whether a tokens artifact holds unpaired preferences."""
    return bool(_facts(directory)["record_type"] == "unpaired")


def read_unpaired(directory: Path, split: str) -> Dataset:
    """Return unpaired preferences: `prompt_ids`, `response_ids`, `label`, and `mismatched_ids`; no reference yet.

    A mismatched response is cut where its row would be longer than the tokens artifact allows.
    """
    table = pq.read_table(directory / f"{split}.parquet")
    most = _facts(directory)["max_length"]
    prompts, responses = (table[name].combine_chunks() for name in ("prompt_ids", "response_ids"))
    others = responses.take(pa.array(mismatched(Lists(table["prompt_ids"])), pa.int64()))
    room = np.maximum(most - sizes(prompts), 0)
    table = table.append_column("mismatched_ids", _cut(others, np.minimum(sizes(others), room)))
    return as_dataset(table, pa.array(sizes(prompts) + sizes(responses)))


def _cut(lists: pa.ListArray, kept: Numbers) -> pa.ListArray:
    """Return the first ``kept`` elements of each list."""
    lengths = sizes(lists)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    inside = np.arange(len(starts)) - starts < np.repeat(kept, lengths)
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, lists.flatten().filter(pa.array(inside)))


def _facts(directory: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((directory / "tokens.json").read_text(encoding="utf-8"))
    return facts


def mismatched(prompts: Sequence[Sequence[int]] | Lists) -> list[int]:
    """Return for each row another one, of another prompt wherever that can be, each row once.

    Rows are put in the order of their prompts' digests, equal prompts together, and shifted by as many as the commonest
    prompt has.
    """
    texts = (np.asarray(prompts[row], np.int64).tobytes() for row in range(len(prompts)))
    digests = [hashlib.blake2b(text, digest_size=16).digest() for text in texts]
    order = sorted(range(len(prompts)), key=lambda row: (digests[row], row))
    shift = max(Counter(digests).values(), default=0)
    others = [0] * len(prompts)
    for place, row in enumerate(order):
        others[row] = order[(place + shift) % len(order)]
    return others


def with_reference(rows: Dataset, reference: pa.Table) -> Dataset:
    """Return the rows with `ref_logps` and `ref_mismatched_logps`, the reference's of either response."""
    ids = rows.data.column("id").combine_chunks()
    logps = logps_of_responses(reference, ids, np.full(len(ids), 2)).reshape(-1, 2)
    for name, number in (("ref_logps", OWN), ("ref_mismatched_logps", MISMATCHED)):
        rows = rows.add_column(name, logps[:, number])
    return rows
