"""Rows in proportions: whole quotas, which rows stay, and what is told where the rows do not suffice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from curated_data import Curated, curate, qa, source

from posttrain.data.steps.mix import largest_remainder, wanted_shares
from posttrain.data.steps.trail import read_trail
from posttrain.stage.errors import UsageError


def mixed(folder: Path, sizes: dict[str, int], **knobs: Any) -> Curated:
    folder.mkdir(exist_ok=True)
    sources = [
        source(folder, name, [qa(f"{name} {place}?") for place in range(size)], task=name)
        for name, size in sizes.items()
    ]
    return curate(folder, "demonstration", sources, steps={"order": ["mix"], "mix": knobs}, eval_fraction=0)


def kept(made: Curated) -> Counter[str]:
    return Counter(record.source for record in made.train)


@pytest.mark.parametrize(
    ("total", "shares", "quotas"),
    [
        (10, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 4, "b": 3, "c": 3}),
        (7, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 4, "b": 2, "c": 1}),
        (100, {"a": 0.29, "b": 0.71}, {"a": 29, "b": 71}),
        (1, {"a": 0.1, "b": 0.9}, {"a": 0, "b": 1}),
    ],
)
def test_quotas_are_whole_and_add_up(total: int, shares: dict[str, float], quotas: dict[str, int]) -> None:
    assert largest_remainder(total, shares) == quotas


def test_a_temperature_evens_groups_out() -> None:
    assert wanted_shares({"a": 100, "b": 900}, {}, 1.0) == pytest.approx({"a": 0.1, "b": 0.9})
    assert wanted_shares({"a": 100, "b": 900}, {}, 2.0) == pytest.approx({"a": 0.25, "b": 0.75})


def test_the_scarcest_group_says_how_many_rows_there_are(tmp_path: Path) -> None:
    made = mixed(tmp_path, {"maths": 10, "chat": 50}, by=["task"], shares={"maths": 1, "chat": 3})
    assert kept(made) == {"maths": 10, "chat": 30}
    assert made.accounting["dropped"] == {"mix": 20}
    assert {str(entry["lost_to"]) for entry in read_trail(made.output)} == {"{'group': 'chat', 'quota': 30, 'of': 50}"}
    groups = made.accounting["flow"][0]["facts"]["groups"]
    assert groups["chat"] == {"before": {"rows": 50, "words": 150}, "after": {"rows": 30, "words": 90}, "share": 0.75}


def test_which_rows_stay_depends_on_seed_and_ids_alone(tmp_path: Path) -> None:
    def chosen(name: str, seed: int, **sizes: int) -> set[str]:
        made = mixed(tmp_path / name, sizes, shares=dict.fromkeys(sizes, 1), seed=seed)
        return {record.id for record in made.train if record.source == "a"}

    assert chosen("one", 0, a=40, b=10) == chosen("two", 0, a=40, c=10)
    assert chosen("three", 0, a=40, b=10) != chosen("four", 1, a=40, b=10)
    assert chosen("five", 0, b=10, a=40) < chosen("six", 0, b=20, a=40)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"rows": 50}, "10 rows of 'a' at a share of 0.5 make at most 20; set rows=20"),
        ({"shares": {"a": 1}}, "'b': it has no share; name each of a, b"),
        ({"shares": {"a": 1, "b": 1, "c": 1}}, "'c': no row is of it"),
    ],
)
def test_what_cannot_be_mixed_is_told_with_the_way_out(tmp_path: Path, knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        mixed(tmp_path, {"a": 10, "b": 30}, **({"shares": {"a": 1, "b": 1}} | knobs))


def test_a_share_of_nothing_leaves_a_group_out(tmp_path: Path) -> None:
    assert kept(mixed(tmp_path, {"a": 10, "b": 30}, shares={"a": 0, "b": 1}, rows=5)) == {"b": 5}
