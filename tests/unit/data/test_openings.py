"""Story openings: as many as asked for, half of them sad, and none held out that the others give away."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.data import openings
from posttrain.data.checks.scorers import score
from posttrain.data.config.openings import OpeningsConfig
from posttrain.stage.errors import UsageError


def generate(directory: Path, seed: int = 0, **knobs: int) -> dict[str, list[dict[str, Any]]]:
    directory.mkdir(parents=True, exist_ok=True)
    context: Any = SimpleNamespace(spec=SimpleNamespace(seed=seed), output=directory)
    openings.run(OpeningsConfig(**knobs), context)
    return {
        name: [json.loads(line) for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("openings", "heldout")
    }


def event(row: dict[str, Any]) -> str:
    """What happens, whoever it happens to."""
    told = re.sub(r"^Once upon a time, there was a little \w+ named \w+\. ", "", row["prompt"])
    told = re.sub("|".join(openings.GIRLS + openings.BOYS), "NAME", told)
    return re.sub(r"\b([Ss]he|[Hh]e|[Hh]er|[Hh]is)\b", "X", told)


def test_no_event_is_told_twice_or_on_both_sides(tmp_path: Path) -> None:
    rows = generate(tmp_path, num_prompts=1080, num_items=360)
    common, held_out = ([event(row) for row in rows[name]] for name in ("openings", "heldout"))
    assert len(set(common + held_out)) == 1080 + 360
    for of_side in rows.values():
        assert [row["task"] for row in of_side] == ["neutral", "sad"] * (len(of_side) // 2)
        assert not any(re.search(r"[{}]|  ", row["prompt"]) for row in of_side)
    assert {row["scorer"] for row in rows["heldout"]} == {"sentiment"}


def test_only_sad_openings_have_a_mood(tmp_path: Path) -> None:
    for row in generate(tmp_path)["openings"]:
        mood = score("sentiment", row["prompt"], "")
        assert mood < -0.3 if row["task"] == "sad" else mood == 0


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first, same, other = (generate(tmp_path / name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert first == same
    assert first != other


def test_more_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"data\.openings\.num_prompts=1081: there are events for 1080; ask for no more"
    ):
        generate(tmp_path, num_prompts=1081)
    with pytest.raises(UsageError, match=r"data\.openings\.num_items=362: there are events for 360"):
        generate(tmp_path, num_items=362)
