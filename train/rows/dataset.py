"""Token artifacts as datasets that a Trainer can index.

Every dataset has the columns `row` (its own index, for error messages), `id` and `length` (tokens), beside its payload.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.data.records import untied_pairs
from posttrain.train.rows.columns import over_groups, sizes, with_lengths
from posttrain.train.rows.references import logps_of_responses

Row = dict[str, Any]


def as_dataset(table: pa.Table, lengths: pa.Array) -> Dataset:
    """Return a table as a dataset with `row` and `length` columns."""
    table = table.combine_chunks().append_column("row", pa.array(np.arange(table.num_rows)))
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
    table = rows.data.table
    fillers = pa.concat_tables([table.slice(0, 1)] * missing)
    of_fillers = pa.array([FILLER] * missing, table.schema.field("row").type)
    fillers = fillers.set_column(table.schema.get_field_index("row"), table.schema.field("row"), of_fillers)
    filled = Dataset(pa.concat_tables([table, fillers]), fingerprint=f"filled-{len(rows)}-{missing}")
    looks = {name: part for name, part in rows.format.items() if name != "format_kwargs"}
    return filled.with_format(**looks, **rows.format["format_kwargs"])


def read_demonstrations(directory: Path, split: str) -> Dataset:
    """Return demonstrations: `input_ids` and `labels`."""
    table = pq.read_table(directory / f"{split}.parquet")
    return as_dataset(table, pc.list_value_length(table["input_ids"]))


def read_groups(directory: Path, split: str) -> Dataset:
    """Return K-ranked groups: `prompt_ids`, `responses_ids` and `ranks`; the length is that of the longest sequence."""
    table = pq.read_table(directory / f"{split}.parquet")
    longest = over_groups(np.maximum, sizes(pc.list_flatten(table["responses_ids"])), sizes(table["responses_ids"]))
    return as_dataset(table, pa.array(sizes(table["prompt_ids"]) + longest))


def shared_lengths(groups: Dataset) -> Dataset:
    """Return K-ranked groups whose length is that of their prompt and all responses, as one row of a shared prompt."""
    prompts, responses = (groups.data.column(name) for name in ("prompt_ids", "responses_ids"))
    totals = over_groups(np.add, sizes(pc.list_flatten(responses)), sizes(responses))
    return with_lengths(groups, sizes(prompts) + totals)


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
    ids, prompts, responses, ranks = (
        groups.data.column(name).combine_chunks() for name in ("id", "prompt_ids", "responses_ids", "ranks")
    )
    made = make_pairs(ranks.to_pylist(), which)
    of_group, *sides = np.array([dataclasses.astuple(pair) for pair in made], np.int64).reshape(-1, 3).T
    first = np.cumsum(sizes(responses)) - sizes(responses)
    logps = logps_of_responses(reference, ids, sizes(responses))
    table: dict[str, Any] = {"id": ids.take(pa.array(of_group)), "prompt_ids": prompts.take(pa.array(of_group))}
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        places = first[of_group] + side
        table |= {f"{name}_ids": responses.flatten().take(pa.array(places)), f"ref_{name}_logps": logps[places]}
    longer = np.maximum(sizes(table["chosen_ids"]), sizes(table["rejected_ids"]))
    lengths = sizes(table["prompt_ids"]) + longer
    return as_dataset(pa.table(table).select(_PAIR_SCHEMA.names).cast(_PAIR_SCHEMA), pa.array(lengths))


def shared_pair_lengths(pairs: Dataset) -> Dataset:
    """Return preference pairs whose length is that of their prompt and both responses."""
    parts = [sizes(pairs.data.column(name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    return with_lengths(pairs, np.sum(parts, axis=0))


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
