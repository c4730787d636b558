"""What is planted into the demo's demonstrations: as much as was asked for, and what curation makes of each kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from curated_data import curate

from posttrain.data import demo, spoil
from posttrain.data.config.demo import DemoConfig
from posttrain.data.config.spoil import SpoilConfig
from posttrain.data.spoil import kind_of
from posttrain.stage.errors import UsageError

KNOBS: dict[str, Any] = {"garbage_share": 0.2, "personal_share": 0.05, "copied_share": 0.05, "copies": 4}


def spoilt(directory: Path, seed: int = 0, **knobs: Any) -> dict[str, list[dict[str, Any]]]:
    sources, output = directory / "sources", directory / "spoilt"
    for folder in (sources, output):
        folder.mkdir(parents=True)
    few = DemoConfig(
        num_texts=30, num_demonstrations=400, num_comparisons=15, num_gold_comparisons=15, num_evaluation_items=60
    )
    made: Any = SimpleNamespace(spec=SimpleNamespace(seed=seed), output=sources, inputs={})
    demo.run(few, made)
    context: Any = SimpleNamespace(spec=SimpleNamespace(seed=seed), output=output, inputs={"sources": sources})
    spoil.run(SpoilConfig(**(KNOBS | knobs)), context)
    return {
        name: [json.loads(line) for line in (output / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("demonstrations", "leaked", "fresh")
    }


def test_as_much_is_planted_as_was_asked_for(tmp_path: Path) -> None:
    rows = spoilt(tmp_path, leak_copies=2)
    kinds = Counter(kind_of(row["id"]) for row in rows["demonstrations"])
    assert kinds == {
        "plain": 300,
        "personal": 20,
        **dict.fromkeys(("control", "garbled", "echo", "repeating"), 20),
        **dict.fromkeys(("copy", "almost"), 40),
        **dict.fromkeys(("leak", "within"), 30),
    }
    assert len({row["id"] for row in rows["demonstrations"]}) == len(rows["demonstrations"])
    cells = [Counter((item["task"], item["language"]) for item in rows[name]) for name in ("leaked", "fresh")]
    assert cells[0] == cells[1] and len(cells[0]) == 15
    prompts = [{item["prompt"][0]["content"] for item in rows[name]} for name in ("leaked", "fresh")]
    said = "\n".join(row["prompt"][0]["content"] for row in rows["demonstrations"]) + "\n"
    assert all(f"{prompt}\n" in said for prompt in prompts[0]) and not any(
        f"{prompt}\n" in said for prompt in prompts[1]
    )


def test_it_follows_from_the_seed(tmp_path: Path) -> None:
    one, same, other = (spoilt(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one == same and one != other


def test_curation_finds_each_kind_and_leaves_the_rest(tmp_path: Path) -> None:
    rows = spoilt(tmp_path)
    items = {}
    for name in ("leaked", "fresh"):
        (folder := tmp_path / name).mkdir()
        path = tmp_path / "spoilt" / f"{name}.jsonl"
        items[name] = curate(folder, "evaluation", [{"name": name, "path": str(path), "split": "eval"}])
    (folder := tmp_path / "curated").mkdir()
    source = {"name": "mine", "path": str(tmp_path / "spoilt/demonstrations.jsonl")}
    order = ["quality", "pii", "contamination", "near_duplicate"]
    made = curate(folder, "demonstration", [source], items, steps={"order": order})
    kept = Counter(kind_of(record.id.partition("/")[2]) for record in made.train)
    assert not any(kept[kind] for kind in ("control", "garbled", "echo", "repeating", "leak"))
    planted = Counter(kind_of(row["id"]) for row in rows["demonstrations"])
    assert kept["plain"] + kept["copy"] + kept["almost"] <= planted["plain"]
    assert kept["plain"] > 0.8 * planted["plain"] and kept["within"] <= 0.15 * planted["within"]
    said = [record.completion[0].content for record in made.train + made.eval if "/personal-" in record.id]
    assert len(said) > 0.9 * planted["personal"]
    assert all("[EMAIL_1], tel. [PHONE_1]" in text and "@" not in text for text in said)


def test_what_cannot_be_spoilt_is_refused(tmp_path: Path) -> None:
    context: Any = SimpleNamespace(spec=SimpleNamespace(seed=0), output=tmp_path, inputs={"sources": tmp_path})
    with pytest.raises(
        UsageError, match=r"demonstrations\.jsonl is not there; inputs\.sources must be made by data\.demo"
    ):
        spoil.run(SpoilConfig(), context)
    with pytest.raises(UsageError, match=r"add up to 1\.05"):
        spoilt(tmp_path / "much", garbage_share=0.9, copied_share=0.1)
