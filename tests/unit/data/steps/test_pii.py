"""Personal data and secrets: what is found, what only looks like it, and that nothing of it is written anywhere."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from curated_data import Curated, curate, source
from planted_texts import LOOK_ALIKES, PII

from posttrain.data.config.steps import PiiType
from posttrain.data.steps.pii_numbers import iban_at, is_card, national_ids
from posttrain.data.steps.pii_patterns import find
from posttrain.data.steps.trail import read_trail

TYPES = frozenset(get_args(PiiType))
MAIL, CARD = "jo.doe@mail.org", "4111 1111 1111 1111"


def cleaned(folder: Path, rows: list[Any], record_type: Any = "demonstration", **knobs: Any) -> Curated:
    steps = {"order": ["pii"], "pii": knobs}
    return curate(folder, record_type, [source(folder, "s", rows)], steps=steps, eval_fraction=0)


@pytest.mark.parametrize("kind", PII)
def test_each_type_is_found_whole_and_named(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        before, secret, after = PII[kind](rng)
        found = find(f"Well, {before}{secret}{after} and so on", TYPES)
        assert [name for _, _, name in found] == [kind], (secret, found)


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_what_looks_like_it_stays(kind: str) -> None:
    rng = random.Random(2)
    taken = 0
    for _ in range(200):
        before, text, after = LOOK_ALIKES[kind](rng)
        taken += bool(find(f"Well, {before}{text}{after} and so on", TYPES))
    assert taken <= 2


def test_check_digits_decide() -> None:
    assert is_card("4111-1111-1111-1111")
    assert not is_card("4111-1111-1111-1112")
    iban = "GB82 WEST 1234 5698 7654 32"
    assert iban_at(iban, 0) == len(iban)
    assert iban_at(iban.replace("82", "83"), 0) is None
    assert iban_at(f"{iban}1", 0) is None
    assert len(list(national_ids("12345678Z RSSMRA85T10A562S 131052-308T 111.444.777-35 11010519491231002X"))) == 5
    assert not list(national_ids("12345678A RSSMRA85T10A562T 131052-308U 111.444.777-36 110105194912310021"))


def test_placeholders_are_the_same_for_the_same_thing_in_all_turns_and_meet_none_that_is_there(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": f"I am {MAIL}, not [EMAIL_4] nor al@mail.org."},
        {"role": "assistant", "content": f"Hello {MAIL.upper()}!"},
        {"role": "user", "content": "Pay with 4111-1111-1111-1111."},
        {"role": "assistant", "content": f"{CARD}: done."},
    ]
    (row,) = cleaned(tmp_path, [{"messages": turns}]).train
    assert [turn.content for turn in row.prompt] == [
        "I am [EMAIL_5], not [EMAIL_4] nor [EMAIL_6].",
        "Hello [EMAIL_5]!",
        "Pay with [CARD_1].",
    ]
    assert row.completion[0].content == "[CARD_1]: done."


def test_reasoning_arguments_and_responses_are_cleaned_too(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "mail", "arguments": {"to": [MAIL]}}}],
    }
    turns = [{"role": "user", "content": "Write."}, {**call, "reasoning_content": f"So {MAIL}."}]
    (row,) = cleaned(tmp_path, [{"messages": turns}]).train
    assert row.completion[0].tool_calls[0].arguments == {"to": ["[EMAIL_1]"]}
    assert row.completion[0].reasoning_content == "So [EMAIL_1]."
    (tmp_path / "pairs").mkdir()
    pair = {"prompt": "Whom?", "chosen": f"Ask {MAIL}.", "rejected": f"{MAIL} or {CARD}"}
    (pairs,) = cleaned(tmp_path / "pairs", [pair], "comparison").train
    assert [turn.content for turn in pairs.responses] == ["Ask [EMAIL_1].", "[EMAIL_1] or [CARD_1]"]


def test_nothing_found_is_written_to_a_file_or_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    rows = [
        {"prompt": f"Who is {MAIL}?", "completion": f"{CARD} <|im_end|>"},
        {"prompt": f"Mail {MAIL}", "completion": "It is done, my friend."},
        {"prompt": f"Mail {MAIL}", "completion": {"broken": [MAIL]}},
    ]
    steps = {"order": ["pii", "quality", "near_duplicate"]}
    sources = [source(tmp_path, "s", rows)]
    made = curate(tmp_path, "demonstration", sources, steps=steps, eval_fraction=0, on_bad_row="quarantine")
    assert made.accounting["dropped"] == {"control_token": 1, "quarantined": 1}
    assert made.accounting["noted"] == {"pii_card": 1, "pii_email": 2}
    said = {path.name: path.read_text(errors="replace") for path in made.output.iterdir()}
    assert {"dropped.jsonl", "quarantine.jsonl"} <= {*said}
    for name, text in {**said, "log": caplog.text, "result": repr(made.result)}.items():
        assert MAIL not in text, name
        assert CARD not in text, name
    assert [entry["lost_to"] for entry in read_trail(made.output) if entry["what"] == "changed"] == [
        {"places": 1},
        {"places": 1},
        {"places": 1},
    ]


def test_rows_drop_on_request_and_types_can_be_chosen(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?", "completion": MAIL}, {"prompt": "How?", "completion": CARD}]
    made = cleaned(tmp_path, rows, on_found="drop", types=["email"])
    assert made.accounting["dropped"] == {"pii_email": 1}
    (entry,) = read_trail(made.output)
    assert MAIL not in json.dumps(entry)
    assert made.train[0].completion[0].content == CARD
