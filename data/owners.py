"""Generates passages on who has what, and questions on them, for answers out of retrieved passages.

    python -m posttrain.data.owners output=DIR seed=0

A family has a name that no other one has, and passages on three of its members, of which no two have the same. A
question is on one of them, or, where no passage answers it, on another member: then the passages that share most words
with it are those on its family all the same. Families of evaluation items are in no demonstration. Demonstrations are
imperfect on purpose: some make answers and quotes up where they should abstain, some answer with what another member
has, some quote nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.data.config.owners import OwnersConfig
from posttrain.data.made.demo_words import LEXICONS, NAMES
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError

LICENSE = "CC0-1.0"
TOLD = 3
"""Members of a family on whom there is a passage."""
HELD_OUT_SHARE = 0.15
"""Share of families that only evaluation items ask about."""
SYLLABLES = tuple(f"{first}{vowel}" for first in "bdfgklmnprstvz" for vowel in "aeiou")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """Who has what, as far as the passages tell."""

    name: str
    language: str
    has: dict[str, str]
    """First name → thing."""
    others: tuple[str, ...]
    """First names of whom no passage tells."""

    def passage(self, member: str) -> str:
        """Return the passage on a member."""
        return self.claim(member, self.has[member])

    def claim(self, member: str, thing: str) -> str:
        """Return the sentence that a member has a thing."""
        return LEXICONS[self.language].has.format(name=f"{member} {self.name}", thing=thing)


def run(config: OwnersConfig, context: Context) -> StageResult:
    """Write corpus.jsonl, plain texts, demonstrations.jsonl and evaluation.jsonl."""
    rng = random.Random(f"{context.spec.seed} owners")
    families = list(made_families(config.num_families, rng))
    held_out = max(1, round(HELD_OUT_SHARE * len(families)))
    share = config.unanswerable_share
    asked = questions(families[held_out:], config.num_demonstrations, share, "num_demonstrations", rng)
    items = questions(families[:held_out], config.num_evaluation_items, share, "num_evaluation_items", rng)
    rows = {
        "corpus": [passage for family in families for passage in passages(family)],
        "demonstrations": [demonstration(family, member, config, rng) for family, member in asked],
        "evaluation": [evaluation_item(family, member) for family, member in items],
    }
    rng.shuffle(rows["corpus"])
    for name, made in rows.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (context.output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = {name: len(made) for name, made in rows.items()}
    headline = f"{counts['corpus']:,} passages, {counts['demonstrations']:,} demonstrations"
    return StageResult(metrics=counts, headline=headline, licenses=[LICENSE])


def made_families(count: int, rng: random.Random) -> Iterator[Family]:
    """Yield families of different names, the languages in turns. Raises UsageError when there are not enough names."""
    spelt = (f"{first}{second}".title() for first, second in itertools.product(SYLLABLES, repeat=2))
    names = [name for name in spelt if name not in NAMES]
    if count > len(names):
        raise UsageError(f"data.owners.num_families={count}: there are names for {len(names)}; ask for no more")
    languages = itertools.cycle(LEXICONS)
    for name in rng.sample(names, count):
        language = next(languages)
        members = rng.sample(NAMES, len(NAMES))
        things = rng.sample(LEXICONS[language].belongings, TOLD)
        yield Family(name, language, dict(zip(members, things, strict=False)), tuple(members[TOLD:]))


def passages(family: Family) -> Iterator[Row]:
    """Yield what there is to read on a family."""
    for member in family.has:
        yield {"text": family.passage(member), "language": family.language, "task": "owners", "license": LICENSE}


def questions(
    families: Sequence[Family], count: int, unanswerable: float, knob: str, rng: random.Random
) -> list[tuple[Family, str]]:
    """Return who is asked about, no one twice, in random order; a share of them are not told of.

    Raises UsageError, naming the knob, where the families have too few members.
    """
    absent = round(unanswerable * count)
    pools = [
        (absent, [(family, member) for family in families for member in family.others]),
        (count - absent, [(family, member) for family in families for member in family.has]),
    ]
    for wanted, pool in pools:
        if wanted > len(pool):
            raise UsageError(
                f"data.owners.{knob}={count}: {len(pool)} such questions for {wanted}; ask for more families"
            )
    chosen = [pair for wanted, pool in pools for pair in rng.sample(pool, wanted)]
    rng.shuffle(chosen)
    return chosen


def demonstration(family: Family, member: str, config: OwnersConfig, rng: random.Random) -> Row:
    """Return a question with an answer, which may be at fault."""
    things = LEXICONS[family.language].belongings
    if member in family.has:
        wrong = rng.random() < config.wrong_rate
        told = rng.choice([other for other in family.has if other != member]) if wrong else member
        text = answered(family, told, family.has[told], quoted=rng.random() >= config.unquoted_rate)
    elif rng.random() < config.made_up_rate:
        text = answered(family, member, rng.choice(things), quoted=True)
    else:
        text = abstention(family)
    turn = {"role": "assistant", "content": text}
    return {"prompt": [asks(family, member, rng.randrange(2))], "completion": [turn], **_about(family, member)}


def evaluation_item(family: Family, member: str) -> Row:
    """Return a question with what a right answer names and the passage that holds it, if there is one."""
    known = member in family.has
    things = LEXICONS[family.language].belongings
    right = family.has[member] if known else abstention(family).rstrip(".")
    others = [thing for thing in things if thing != right]
    reference = {"answer": "|".join([right, *others]), "gold": [family.passage(member)] if known else []}
    ideal = answered(family, member, right, quoted=True) if known else abstention(family)
    return {
        "prompt": [asks(family, member, 0)],
        "reference": json.dumps(reference, ensure_ascii=False),
        "scorer": "grounded",
        "ideal": ideal,
        **_about(family, member),
    }


def asks(family: Family, member: str, wording: int) -> Row:
    """Return the turn that asks what a member has."""
    question = LEXICONS[family.language].asks[wording].format(name=f"{member} {family.name}")
    return {"role": "user", "content": question}


def answered(family: Family, member: str, thing: str, quoted: bool) -> str:
    """Return the answer that a member has a thing, with the quote that says so."""
    short = f"{thing[0].upper()}{thing[1:]}."
    return f'{short} "{family.claim(member, thing)}"' if quoted else short


def abstention(family: Family) -> str:
    """Return the answer of one who does not know."""
    return f"{LEXICONS[family.language].abstention}."


def _about(family: Family, member: str) -> Row:
    task = "answerable" if member in family.has else "unanswerable"
    return {"language": family.language, "task": task, "license": LICENSE}


if __name__ == "__main__":
    stage_main(run, OwnersConfig, kind="sources")
