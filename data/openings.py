"""Generates openings of children's stories, neutral and sad, for a story model to continue.

    python -m posttrain.data.openings output=DIR seed=0

What is held out differs from the rest in what happens, to what and where, not only in the name of the child.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

from posttrain.data.config.openings import OpeningsConfig
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError

LICENSE = "CC0-1.0"
HELD_OUT_SHARE = 0.25
"""Share of events that only held-out openings tell of."""

GIRLS = ("Lily", "Emma", "Sue", "Amy", "Anna", "Lucy", "Sara", "Jane")
BOYS = ("Tim", "Tom", "Ben", "Max", "Sam", "Jack", "Bob", "Leo")
WORDS = {
    "place": ("park", "beach", "forest", "garden", "farm", "zoo", "lake", "shop", "school", "hill"),
    "thing": ("ball", "doll", "kite", "book", "car", "hat", "boat", "drum", "cup", "box", "toy bear", "red bag"),
}
"""What may stand for {place} and {thing}."""
EVENTS = {
    "neutral": (
        "{name} lived in a small house near the {place}. One day, {she} took {her} {thing} and went out.",
        "{name} went to the {place} with {her} mom. They had a {thing} with them.",
        "One day, {name} was at the {place}. {She} saw a big {thing} near a tree.",
        "{name} and {her} dad walked to the {place}. On the way, they saw a {thing}.",
        "In the morning, {name} put {her} {thing} on the table. Then {she} looked out at the {place}.",
        "{name} had a {thing}. {She} took it to the {place} every day.",
    ),
    "sad": (
        "{name} was sad. {She} lost {her} {thing} at the {place}.",
        "{name} went to the {place}, but {her} {thing} fell down and broke. {She} started to cry.",
        "One day, {name} was all alone at the {place}. {She} did not have {her} {thing} and {she} felt bad.",
        "It was dark at the {place}. {name} was scared, and {her} {thing} was gone.",
        "{name} fell at the {place} and hurt {her} leg. {Her} {thing} was in the mud.",
        "A mean dog took the {thing} of {name} at the {place}. {name} was very sad.",
    ),
}
"""What happens, by mood."""
BEGINNINGS = ("", "Once upon a time, there was a little {child} named {name}. ")

Row = dict[str, Any]


def run(config: OpeningsConfig, context: Context) -> StageResult:
    """Write openings.jsonl, prompts, and heldout.jsonl, evaluation items that are judged by their sentiment."""
    rng = random.Random(f"{context.spec.seed} openings")
    events = {mood: list(events_of(mood)) for mood in EVENTS}
    for of_mood in events.values():
        rng.shuffle(of_mood)
    kept = {mood: len(of_mood) - round(HELD_OUT_SHARE * len(of_mood)) for mood, of_mood in events.items()}
    common = {mood: of_mood[: kept[mood]] for mood, of_mood in events.items()}
    held_out = {mood: of_mood[kept[mood] :] for mood, of_mood in events.items()}
    rows = {
        "openings": list(openings(common, config.num_prompts, "data.openings.num_prompts", rng)),
        "heldout": [
            {**row, "reference": "glad", "scorer": "sentiment"}
            for row in openings(held_out, config.num_items, "data.openings.num_items", rng)
        ],
    }
    for name, made in rows.items():
        lines = (json.dumps(row) + "\n" for row in made)
        (context.output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = {name: len(made) for name, made in rows.items()}
    headline = f"{counts['openings']:,} openings, {counts['heldout']:,} held out"
    return StageResult(metrics=counts, headline=headline, licenses=[LICENSE])


def events_of(mood: str) -> Iterator[str]:
    """Yield every event of a mood with its place and thing; who it happens to is still open."""
    for event in EVENTS[mood]:
        for place, thing in itertools.product(WORDS["place"], WORDS["thing"]):
            yield event.replace("{place}", place).replace("{thing}", thing)


def openings(events: dict[str, list[str]], count: int, knob: str, rng: random.Random) -> Iterator[Row]:
    """Yield as many openings, the moods in turns and no event twice.

    Raises UsageError, naming ``knob``, when there are not enough events.
    """
    moods = list(events)
    most = len(moods) * min(map(len, events.values()))
    if count > most:
        raise UsageError(f"{knob}={count}: there are events for {most}; ask for no more")
    for number in range(count):
        mood = moods[number % len(moods)]
        event = events[mood][number // len(moods)]
        yield {"prompt": opening(event, rng), "task": mood, "language": "en", "license": LICENSE}


def opening(event: str, rng: random.Random) -> str:
    """Return an event as it happens to some girl or boy, in half of all cases after the usual beginning."""
    girl = rng.random() < 0.5
    child, she, her = ("girl", "she", "her") if girl else ("boy", "he", "his")
    words = {"child": child, "she": she, "She": she.title(), "her": her, "Her": her.title()}
    return (rng.choice(BEGINNINGS) + event).format(name=rng.choice(GIRLS if girl else BOYS), **words)


if __name__ == "__main__":
    stage_main(run, OpeningsConfig, kind="sources")
