"""Token artifacts as datasets that a Trainer can index.

Every dataset has the columns `row` (its own index, for error messages), `id` and `length` (tokens), beside its payload.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.data.records import untied_pairs
from posttrain.train.rows.references import logps_of_responses

Row = dict[str, Any]


def as_dataset(table: pa.Table, lengths: pa.Array) -> Dataset:
    """Return a table as a dataset with `row` and `length` columns."""
    table = table.combine_chunks().append_column("row", pa.array(range(table.num_rows), pa.int64()))
    # A fingerprint of our own: the default one pickles the whole table to hash it.
    return Dataset(table.append_column("length", lengths), fingerprint=f"rows-{table.num_rows}")


FILLER = -1
"""The `row` of a row that only fills up a batch: it is computed, and counts nowhere."""


def fill_up(rows: Dataset, multiple: int) -> Dataset:
    """Return a held-out split with fillers at its end, so that its length is a multiple.

    Without them accelerate would repeat rows, which would then count twice.
    """
    missing = -len(rows) % multiple
    if not missing:
        return rows
    filled = rows.select([*range(len(rows)), *[0] * missing])
    return filled.remove_columns("row").add_column("row", [*rows["row"], *[FILLER] * missing])


def read_demonstrations(directory: Path, split: str) -> Dataset:
    """Return demonstrations: `input_ids` and `labels`."""
    table = pq.read_table(directory / f"{split}.parquet")
    return as_dataset(table, pc.list_value_length(table["input_ids"]))


def read_groups(directory: Path, split: str) -> Dataset:
    """Return K-ranked groups: `prompt_ids`, `responses_ids` and `ranks`; the length is that of the longest sequence."""
    table = pq.read_table(directory / f"{split}.parquet")
    prompts = pc.list_value_length(table["prompt_ids"]).to_pylist()
    longest = [max(len(response) for response in group) for group in table["responses_ids"]]
    return as_dataset(table, pa.array([a + b for a, b in zip(prompts, longest, strict=True)], pa.int64()))


def shared_lengths(groups: Dataset) -> Dataset:
    """Return K-ranked groups whose length is that of their prompt and all responses, as one row of a shared prompt."""
    lengths = [
        len(prompt) + sum(map(len, responses))
        for prompt, responses in zip(groups["prompt_ids"], groups["responses_ids"], strict=True)
    ]
    return groups.remove_columns("length").add_column("length", lengths)


def read_prompts(directory: Path, split: str) -> Dataset:
    """Return prompts: `prompt_ids`, `messages`, and `reference` and `scorer` where there are any (else None)."""
    table = pq.read_table(directory / f"{split}.parquet")
    return as_dataset(table, pc.list_value_length(table["prompt_ids"]))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A chosen and a rejected response of one group, by index."""

    group: int
    chosen: int
    rejected: int


def make_pairs(ranks_of_groups: list[list[int]], which: str) -> list[Pair]:
    """Return the preference pairs of ranked groups (rank 1 is best; tied responses make no pair).

    ``best_worst`` gives one pair a group, the first best and the last worst response; ``all`` gives every untied pair.
    """
    pairs = []
    for group, ranks in enumerate(ranks_of_groups):
        if which == "best_worst":
            best, worst = min(ranks), max(ranks)
            if best < worst:
                last_worst = len(ranks) - 1 - ranks[::-1].index(worst)
                pairs.append(Pair(group, ranks.index(best), last_worst))
        else:
            pairs += [Pair(group, better, worse) for better, worse in untied_pairs(ranks)]
    return pairs


def pair_dataset(groups: Dataset, reference: pa.Table, which: str) -> Dataset:
    """Return preference pairs in TRL's columns, with the reference model's log-probabilities of both responses.

    ``reference`` has a row (`id`, `response`, `logp`) for every response of every group.
    """
    logps = logps_of_responses(reference)
    rows = []
    for pair in make_pairs(list(groups["ranks"]), which):
        group = groups[pair.group]
        chosen, rejected = (group["responses_ids"][index] for index in (pair.chosen, pair.rejected))
        rows.append(
            {
                "id": group["id"],
                "prompt_ids": group["prompt_ids"],
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "ref_chosen_logps": logps[group["id"], pair.chosen],
                "ref_rejected_logps": logps[group["id"], pair.rejected],
            }
        )
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    return as_dataset(pa.Table.from_pylist(rows, schema=_PAIR_SCHEMA), pa.array(lengths, pa.int64()))


def shared_pair_lengths(pairs: Dataset) -> Dataset:
    """Return preference pairs whose length is that of their prompt and both responses."""
    parts = (pairs["prompt_ids"], pairs["chosen_ids"], pairs["rejected_ids"])
    lengths = [sum(map(len, pair)) for pair in zip(*parts, strict=True)]
    return pairs.remove_columns("length").add_column("length", lengths)


_IDS = pa.list_(pa.int32())
_PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("ref_chosen_logps", pa.float64()),
        ("ref_rejected_logps", pa.float64()),
    ]
)
