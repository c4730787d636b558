"""What a careless collector does to rows of the demo: each function spoils one row in its way."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from posttrain.data.made.demo_words import NAMES

Row = dict[str, Any]

GARBLED = "\ufffd"
REPEATED_WORDS = 80
"""Words of an answer that says one thing over and over, at least."""


def control_token(row: Row, rng: random.Random) -> Row:
    """Return the row with a marker of some chat template left in its answer."""
    return answered(row, f"{answer(row)} [/INST]")


def garbled(row: Row, rng: random.Random) -> Row:
    """Return the row with an answer that was decoded wrongly: one character in three is lost."""
    return answered(row, "".join(GARBLED if place % 3 == 1 else one for place, one in enumerate(answer(row))))


def echo(row: Row, rng: random.Random) -> Row:
    """Return the row with its prompt as the answer."""
    return answered(row, asked(row))


def repeating(row: Row, rng: random.Random) -> Row:
    """Return the row with an answer that says one thing over and over."""
    said = answer(row)
    return answered(row, " ".join([said] * (REPEATED_WORDS // len(said.split()) + 1)))


GARBAGE: dict[str, Callable[[Row, random.Random], Row]] = {
    "control": control_token,
    "garbled": garbled,
    "echo": echo,
    "repeating": repeating,
}
"""Ways in which an answer is no answer, by what the ids of such rows begin with."""


def personal(row: Row, rng: random.Random) -> Row:
    """Return the row with an address and a number of somebody's behind its answer; neither can exist."""
    contact = f"{rng.choice(NAMES).lower()}.{rng.randint(10, 999)}@post.demo"
    return answered(row, f"{answer(row)} {contact}, tel. +44 7700 900{rng.randint(0, 999):03}")


def almost(row: Row, rng: random.Random) -> Row:
    """Return the row with a prompt that differs in its marks and case, and says the same."""
    text = asked(row)
    return prompted(row, rng.choice((f"{text}!", f"{text} …", text.swapcase())))


def within(row: Row, before: str) -> Row:
    """Return the row with something else said before it asks."""
    return prompted(row, f"{before}\n{asked(row)}")


def asked(row: Row) -> str:
    """Return what a row asks."""
    text: str = row["prompt"][0]["content"]
    return text


def answer(row: Row) -> str:
    """Return what a row answers."""
    text: str = row["completion"][0]["content"]
    return text


def prompted(row: Row, prompt: str) -> Row:
    """Return a row with another prompt."""
    return row | {"prompt": [{"role": "user", "content": prompt}]}


def answered(row: Row, response: str) -> Row:
    """Return a row with another answer."""
    return row | {"completion": [{"role": "assistant", "content": response}]}
