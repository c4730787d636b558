"""Rows as columns: what is made of them, against what plain lists give, and that no row is held twice."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from posttrain.data.records import IGNORED
from posttrain.models.packing import best_fit_decreasing
from posttrain.stage.errors import UsageError
from posttrain.train.rows.columns import Lists, lengths_of, numbers_of
from posttrain.train.rows.dataset import (
    FILLER,
    as_dataset,
    fill_up,
    make_pairs,
    pair_dataset,
    read_groups,
    shared_lengths,
    shared_pair_lengths,
)
from posttrain.train.rows.packs import pack_demonstrations
from posttrain.train.rows.references import logps_of_responses

IDS = pa.list_(pa.int32())


def demonstrations(count: int = 40) -> Dataset:
    draw = random.Random(1)
    texts = [[draw.randrange(5, 500) for _ in range(draw.randint(1, 30))] for _ in range(count)]
    labels = [[IGNORED] * (len(text) // 2) + text[len(text) // 2 :] for text in texts]
    columns = {
        "id": pa.array([f"d/{n}" for n in range(count)], pa.string()),
        "input_ids": pa.array(texts, IDS),
        "labels": pa.array(labels, IDS),
    }
    table = pa.table(columns)
    halves = pa.concat_tables([table.slice(0, 13), table.slice(13)])
    return as_dataset(halves, pa.array([len(text) for text in texts]))


def test_lists_of_several_chunks_are_those_of_the_column() -> None:
    column = pa.chunked_array([pa.array([[1], [], [2, 3]], IDS), pa.array([[9], [4], [5, 6]], IDS).slice(1)])
    lists = Lists(column)
    assert [row.tolist() for row in (lists[n] for n in range(len(lists)))] == column.to_pylist()
    assert lists.joined([4, 0, 2]).tolist() == [5, 6, 1, 2, 3]


def test_packs_are_the_rows_one_behind_the_other() -> None:
    rows = demonstrations()
    packs = pack_demonstrations(rows, 32)
    lengths = list(rows["length"])
    for found, members in zip(packs, best_fit_decreasing(lengths, 32), strict=True):
        whole = [rows[number] for number in members]
        assert found["id"] == ", ".join(row["id"] for row in whole)
        assert found["input_ids"].tolist() == [token for row in whole for token in row["input_ids"]]
        assert found["labels"].tolist() == [part for row in whole for part in (IGNORED, *row["labels"][1:])]
        assert found["position_ids"].tolist() == [place for row in whole for place in range(row["length"])]
        assert found["length"] == len(found["input_ids"])
    assert packs[[1, 0]]["input_ids"][1].tolist() == packs[0]["input_ids"].tolist()


def test_packs_hold_numbers_of_rows_and_no_tokens() -> None:
    rows = demonstrations(400)
    packs = pack_demonstrations(rows, 64)
    own = sum(
        column.nbytes for name, column in zip(packs.column_names, packs.data.columns, strict=True) if name != "id"
    )
    assert own < 0.5 * rows.data.column("input_ids").nbytes
    assert len(pack_demonstrations(demonstrations(0), 64)) == 0


def test_filled_up_packs_are_packs() -> None:
    packs = pack_demonstrations(demonstrations(), 32)
    filled = fill_up(packs, len(packs) + 2)
    assert list(filled["row"]) == [*range(len(packs)), FILLER, FILLER]
    assert filled[len(packs) + 1]["input_ids"].tolist() == packs[0]["input_ids"].tolist()
    assert filled[3]["labels"].tolist() == packs[3]["labels"].tolist()


GROUPS: list[dict[str, Any]] = [
    {"id": "g/0", "prompt_ids": [1], "responses_ids": [[4], [5, 6], [7]], "ranks": [3, 1, 2]},
    {"id": "g/1", "prompt_ids": [2, 3], "responses_ids": [[8], [9]], "ranks": [1, 1]},
    {"id": "g/2", "prompt_ids": [2], "responses_ids": [[8, 9], [1], [2], [3, 4, 5]], "ranks": [1, 2, 2, 4]},
]


@pytest.mark.parametrize("which", ["best_worst", "all"])
def test_pairs_and_lengths_are_those_of_plain_lists(tmp_path: Path, which: str) -> None:
    kinds = {"id": pa.string(), "prompt_ids": IDS, "responses_ids": pa.list_(IDS), "ranks": pa.list_(pa.int64())}
    pq.write_table(pa.Table.from_pylist(GROUPS, pa.schema(list(kinds.items()))), tmp_path / "train.parquet")
    groups = read_groups(tmp_path, "train")
    assert lengths_of(groups).tolist() == [1 + 2, 2 + 1, 1 + 3]
    assert lengths_of(shared_lengths(groups)).tolist() == [1 + 4, 2 + 2, 1 + 7]
    names = [(group["id"], number) for group in GROUPS for number in range(len(group["ranks"]))]
    logps = {name: -float(place) for place, name in enumerate(names)}
    shuffled = [*random.Random(0).sample(names, len(names)), ("of another split", 0)]
    reference = pa.table(
        {
            "id": [name for name, _ in shuffled],
            "response": pa.array([number for _, number in shuffled], pa.int32()),
            "logp": [logps.get(name, -1.0) for name in shuffled],
        }
    )
    pairs = pair_dataset(groups, reference, which)
    made = make_pairs([group["ranks"] for group in GROUPS], which)
    assert len(pairs) == len(made) > 1
    for found, pair in zip(pairs, made, strict=True):
        group = GROUPS[pair.group]
        assert (found["id"], found["prompt_ids"]) == (group["id"], group["prompt_ids"])
        sides = {"chosen": pair.chosen, "rejected": pair.rejected}
        for side, number in sides.items():
            assert found[f"{side}_ids"] == group["responses_ids"][number]
            assert found[f"ref_{side}_logps"] == logps[group["id"], number]
        longer = max(len(found["chosen_ids"]), len(found["rejected_ids"]))
        assert found["length"] == len(found["prompt_ids"]) + longer
    whole = lengths_of(shared_pair_lengths(pairs))
    assert whole.tolist() == [
        sum(len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")) for row in pairs
    ]
    assert numbers_of(pairs, "row").tolist() == list(range(len(made)))


def test_a_response_that_the_reference_lacks_is_named() -> None:
    reference = pa.table(
        {"id": ["a", "b", "b"], "response": pa.array([0, 0, 2], pa.int32()), "logp": [-1.0, -2.0, -3.0]}
    )
    with pytest.raises(UsageError, match="response 1 of b is not in it"):
        logps_of_responses(reference, pa.array(["a", "b"]), np.array([1, 3]))


def test_packs_go_to_a_worker_as_they_are() -> None:
    packs = pickle.loads(pickle.dumps(pack_demonstrations(demonstrations(), 32)))
    assert packs[0]["input_ids"].tolist() == pack_demonstrations(demonstrations(), 32)[0]["input_ids"].tolist()
