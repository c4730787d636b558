"""Odd texts go through every step without a traceback, and every row is accounted for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from curated_data import curate, source

from posttrain.data.config.steps import StepName
from posttrain.data.steps.apply import STEPS

ODD = [
    "\u0000nul and \u001b[31mred", "\u200b\u200d\u2060", "🏴‍☠️🙂" * 30, "مرحبا بالعالم " * 20,
    "e" + "\u0301" * 500, "\ufffd" * 60,
    "-----BEGIN PRIVATE KEY-----", "@" * 300,
    "1" * 5000, "+" * 3000, "1.1.1." * 600, "(" * 500 + ")" * 500, "a@" * 900,
    "``` " * 50, '"' * 99, "> " * 99, "4111 " * 300, "DE" * 900, "\u3000全角１２３",
    "x = -" * 60, "\u2028\u2029", "<|" * 200, "#" * 400,
    "word " * 4000, "0" * 19, "12:34:" * 300, "::" * 300, "ISBN " * 200, "password: " * 100,
]  # fmt: skip


@pytest.mark.parametrize("record_type", ["demonstration", "comparison", "unpaired", "prompt"])
def test_odd_texts_go_through_every_step_of_every_type_of_record(tmp_path: Path, record_type: str) -> None:
    rng = random.Random(0)
    texts = [*ODD, *("".join(rng.choices("ab1 @.-+()/:\n", k=200)) for _ in range(40))]
    rows = [
        {
            "demonstration": {"prompt": f"{text}?", "completion": text},
            "comparison": {"prompt": f"{text}?", "chosen": text, "rejected": f"{text} no"},
            "unpaired": {"prompt": f"{text}?", "completion": text, "label": True},
            "prompt": {"prompt": f"{text}?"},
        }[record_type]
        for text in texts
    ]
    (tmp_path / "items").mkdir()
    asked = [
        {"prompt": text, "reference": f"{text} !", "scorer": "exact"} for text in ODD if text.strip("\u2028\u2029")
    ]
    items = curate(tmp_path / "items", "evaluation", [source(tmp_path, "items", asked)], on_bad_row="quarantine")
    order: list[StepName] = list(STEPS)
    steps = {"order": order}
    made = curate(
        tmp_path, record_type, [source(tmp_path, "s", [*rows, {"prompt": "Well?", "completion": "Yes."}][: len(rows)])],  # type: ignore[arg-type]
        {"items": items}, steps=steps, on_bad_row="quarantine", eval_fraction=0, item_overlap="keep",
    )  # fmt: skip
    account = made.accounting
    assert account["rows_in"] == len(rows) == account["kept"] + sum(account["dropped"].values())
    assert [step["step"] for step in account["flow"]] == order
    for before, after in zip(account["flow"], account["flow"][1:], strict=False):
        assert before["kept"] == after["rows_in"]


def test_patterns_take_no_more_than_the_text_deserves(tmp_path: Path) -> None:
    # A pattern that tries every way to split such a text would not come back within the time limit of a test.
    rows = [{"prompt": f"{n}?", "completion": text * (40_000 // len(text) + 1)} for n, text in enumerate(ODD)]
    made = curate(
        tmp_path, "demonstration", [source(tmp_path, "s", rows)], steps={"order": ["quality", "language", "pii"]},
        eval_fraction=0, on_bad_row="quarantine",
    )  # fmt: skip
    assert made.accounting["rows_in"] == len(ODD)
