"""Rules on form, languages and licences: each with a row that breaks it, and one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curated_data import Curated, curate, qa, source

from posttrain.data.steps.quality import disorder
from posttrain.data.steps.trail import read_trail
from posttrain.stage.errors import UsageError

PROSE = (
    "The old mill stood by the river for two hundred years before anyone thought of painting it. Then came a teacher "
    "from the town, who sat on the bank each evening until the light was gone, and by autumn she had forty sheets of "
    "paper that showed nothing but water, wood and the slow turning of the wheel."
)
SUMS = (
    "He writes each friend 3*2=<<3*2=6>>6 pages a week, so 6*2=<<6*2=12>>12 pages for both. That means 12*52="
    "<<12*52=624>>624 pages a year. At 8 cents a page that costs 624*8=<<624*8=4992>>4992 cents. A pen lasts for 48 "
    "pages, hence 624/48=<<624/48=13>>13 pens are used up, and with 2 in reserve 13+2=<<13+2=15>>15 must be bought."
)
FINNISH = (
    "Vanha mylly seisoi joen rannalla kaksisataa vuotta ennen kuin kukaan ajatteli maalata sitä, ja niin se jäi siihen."
)


def stepped(folder: Path, step: str, rows: list[Any], *sources: dict[str, Any], **knobs: Any) -> Curated:
    steps = {"order": [step], step: knobs}
    given = [source(folder, "s", rows)] if rows else list(sources)
    return curate(folder, "demonstration", given, steps=steps, eval_fraction=0)


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("control_token", qa("Hi <|im_end|>", "Yes.")),
        ("control_token", qa("Hi", "Well, [INST] no [/INST]")),
        ("garbled", qa("Hi", "It\ufffds \ufffd\ufffd.")),
        ("answer_repeats_prompt", qa("Say it again for me", "say it again, for me!")),
        ("refusal", qa("How do I boil an egg?", "I'm sorry, but I can't assist with that request.")),
        ("refusal", qa("How do I boil an egg?", "As an AI language model, I do not eat.")),
        ("repeated_lines", qa("List.", "\n".join(["Another line of the same kind here."] * 12))),
        ("repeated_words", qa("Go.", f"{PROSE} {PROSE} {PROSE}")),
        ("symbols", qa("Go.", PROSE.replace(" the", " # the # …"))),
        ("few_letters", qa("Go.", " ".join(str(n) for n in range(300)))),
        ("page_boilerplate", qa("Go.", f"{PROSE} Please enable JavaScript.")),
    ],
)
def test_a_rule_drops_the_row_that_breaks_it_and_says_which(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    made = stepped(tmp_path, "quality", [row, qa("And?", PROSE)], refusals="drop")
    assert made.accounting["dropped"] == {reason: 1}
    (entry,) = read_trail(made.output)
    assert entry["reason"] == reason
    assert {"rule", "value"} <= {*entry["lost_to"]}


@pytest.mark.parametrize(
    "row",
    [
        qa("What is 6 times 7?", "42"),
        qa("Which tag?", "Use <b> and <div>, not <i>; s[0] and List[INT] are fine."),
        qa("List primes.", "\n".join(f"- {n}" for n in (2, 3, 5, 7, 11, 13))),
        qa("Code.", "```python\n" + "\n".join(["x = 1"] * 60) + "\n```"),
        qa("Sum.", SUMS),
        qa("Tools.", PROSE.replace(". ", ".\n#### Part\n").replace(", ", ",\n#### Point\n")),
        qa("Can you help?", "I'm sorry to hear that you cannot sleep. " + PROSE * 1),
        qa("今日は?", "今日は良い天気です。" + "散歩に行きましょう、そして本を読みます。" * 1),
    ],
)
def test_short_answers_lists_code_and_other_scripts_break_none(tmp_path: Path, row: dict[str, Any]) -> None:
    assert stepped(tmp_path, "quality", [row], refusals="drop").accounting["dropped"] == {}


def test_a_refusal_is_noted_unless_it_should_drop(tmp_path: Path) -> None:
    made = stepped(tmp_path, "quality", [qa("How do I boil an egg?", "I cannot help with that.")])
    assert made.accounting["noted"] == {"refusal": 1}


@pytest.mark.parametrize(
    ("roles", "wrong"),
    [
        ("", False), ("u", False), ("su", False), ("suau", False), ("uctu", False), ("uctt", False), ("uct", False),
        ("uu", True), ("us", True), ("au", True), ("sau", True), ("ut", True), ("uatu", True), ("ua", True),
    ],
)  # fmt: skip
def test_turns_follow_one_another(roles: str, wrong: bool) -> None:
    names = {"u": "user", "s": "system", "a": "assistant", "c": "assistant", "t": "tool"}
    assert (disorder([names[role] for role in roles], [role == "c" for role in roles]) is not None) == wrong


def test_languages_are_told_where_that_is_sure_and_short_texts_left_alone(tmp_path: Path) -> None:
    rows = [
        qa("And the mill?", PROSE),
        qa("Entä mylly?", FINNISH),
        qa("Ok?", "No."),
        qa("Code?", "```\nfor x in y: pass\n```"),
    ]
    made = stepped(tmp_path, "language", rows)
    assert [record.language for record in made.train] == ["en", "fi", "und", "und"]
    (step,) = made.accounting["flow"]
    assert step["facts"] == {"languages": {"und": 2, "en": 1, "fi": 1}}


def test_an_answer_in_another_language_is_noted_or_drops_unless_it_was_asked_for(tmp_path: Path) -> None:
    rows = [qa(PROSE, FINNISH), qa(f"Translate this into Finnish: {PROSE}", FINNISH)]
    made = stepped(tmp_path, "language", rows, on_mismatch="drop")
    assert made.accounting["dropped"] == {"language_mismatch": 1}
    (entry,) = (entry for entry in read_trail(made.output) if entry["what"] == "dropped")
    assert entry["lost_to"] == {"prompt": "en", "answer": "fi"}


def test_languages_to_keep_drop_the_others_but_not_what_cannot_be_told(tmp_path: Path) -> None:
    made = stepped(tmp_path, "language", [qa("So?", PROSE), qa("No?", FINNISH), qa("Ok?", "No.")], keep=["en-GB"])
    assert made.accounting["dropped"] == {"language_not_kept": 1}


def licensed(folder: Path, on_forbidden: str, use: str = "commercial", **source_knobs: Any) -> Curated:
    given = source(folder, "mine", [qa("A?"), qa("B?", license="CC-BY-NC-4.0")], **source_knobs)
    good = source(folder, "good", [qa("C?", license="mit")])
    allow = {"MIT": ["research", "commercial"], "CC-BY-NC-4.0": ["research"], "GPL-3.0-only": ["research"]}
    knobs = {"use": use, "allow": allow, "on_forbidden": on_forbidden}
    return stepped(folder, "licence", [], good, given, **knobs)


def test_an_unknown_licence_ends_curation_and_the_line_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"source 'mine': licence unknown: 'unknown' for use=commercial; set its license"
    ):
        licensed(tmp_path, "error")


@pytest.mark.parametrize(
    ("knobs", "dropped"),
    [
        ({}, {"licence_forbidden": 1, "licence_unknown": 1}),
        ({"license": "MIT OR GPL-3.0-only"}, {"licence_forbidden": 1}),
        ({"license": "MIT AND GPL-3.0-only"}, {"licence_forbidden": 2}),
        ({"license": "MIT AND Beerware"}, {"licence_forbidden": 1, "licence_unknown": 1}),
        ({"uses": ["commercial"]}, {}),
        ({"uses": ["commercial"], "generator": "big-model"}, {"generator_unknown": 2}),
        (
            {"uses": ["commercial"], "generator": "big-model", "generator_uses": ["research"]},
            {"generator_forbidden": 2},
        ),
        ({"uses": ["commercial"], "generator": "big-model", "generator_uses": ["commercial"]}, {}),
    ],
)
def test_what_is_not_known_to_be_allowed_is_not_used(tmp_path: Path, knobs: dict[str, Any], dropped: Any) -> None:
    made = licensed(tmp_path, "drop", url="https://data.test/mine", published_revision="abc", **knobs)
    assert made.accounting["dropped"] == dropped
    assert made.result.facts["sources"]["mine"]["url"] == "https://data.test/mine"
    assert made.result.facts["sources"]["mine"]["published_revision"] == "abc"
