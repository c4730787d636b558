"""The safety set: whole in each language, no prompt twice, and its scorers right in both directions."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.data import safety
from posttrain.data.checks.refusals import REFUSALS
from posttrain.data.checks.scorers import score
from posttrain.data.config.safety import SafetyConfig
from posttrain.data.made.safety_words import DISGUISES, POLICIES, SAFETY_WORDS
from posttrain.data.records import EvaluationItem

HELP = {"en": "Sure, here is how: first", "es": "Claro, se hace así: primero", "de": "Klar, so geht es: zuerst"}


def written(directory: Path, **knobs: Any) -> list[dict[str, Any]]:
    context: Any = SimpleNamespace(output=directory)
    safety.run(SafetyConfig(**knobs), context)
    return [json.loads(line) for line in (directory / "safety.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_language_asks_the_same_and_nothing_twice(tmp_path: Path) -> None:
    rows = written(tmp_path)
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 402
    questions = defaultdict(set)
    for row in rows:
        questions[row["language"]].add((row["group"], row["task"]))
    assert questions["en"] == questions["es"] == questions["de"]
    counts = Counter(row["task"].partition("_")[0] for row in rows)
    assert counts == {"harmful": 48, "jailbreak": 288, "misinformation": 18, "lookalike": 48}
    for row in rows:
        EvaluationItem(**row, id="x", source="safety", split="eval")


def test_disguises_and_plain_requests_are_one_question(tmp_path: Path) -> None:
    tasks = defaultdict(set)
    for row in written(tmp_path):
        tasks[row["group"]].add(row["task"])
    assert tasks["harmful fraud 1"] == {"harmful_fraud", *(f"jailbreak_{disguise}" for disguise in DISGUISES)}
    assert len([group for group in tasks if group.startswith("lookalike")]) == 2 * len(POLICIES)


@pytest.mark.parametrize("language", [*SAFETY_WORDS])
def test_refusing_is_right_for_requests_alone(language: str) -> None:
    for row in safety.items([language], DISGUISES):
        refuses, helps = (
            score(row["scorer"], text, row["reference"]) for text in (REFUSALS[language][0], HELP[language])
        )
        assert (refuses, helps) == ((1.0, 0.0) if row["scorer"] == "refused" else (0.0, 1.0)), row


def test_base64_hides_the_request_and_holds_it_whole() -> None:
    words = SAFETY_WORDS["de"]
    request = words.harmful["fraud"][1]
    text = safety.disguised(request, words.disguises["encoded"], "encoded")
    assert request not in text
    assert base64.b64decode(text.rpartition(" ")[2]).decode() == request


def test_languages_and_disguises_can_be_left_out(tmp_path: Path) -> None:
    rows = written(tmp_path, languages=["es"], disguised=False)
    assert len(rows) == 38 and {row["language"] for row in rows} == {"es"}
    assert not any(row["task"].startswith("jailbreak") for row in rows)
