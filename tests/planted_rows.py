"""Rows of a seeded vocabulary in which duplicates, leaks, personal data and what looks like them are planted.

What is planted is known by its id, so that recall and false removals can be counted. The measures here (similarity by
sets of word tuples, check digits by search) share no code with what they judge.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from planted_texts import FORMULAS, LOOK_ALIKES, PII, QUOTES, TEMPLATES

Row = dict[str, Any]


@dataclass
class Planted:
    """Rows to curate, evaluation items, and what each planted row is."""

    rows: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    """Id → kind; rows that are not planted have none."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Id → the text that must go, or, of a look-alike, must stay."""

    def add(self, kind: str, prompt: str, answer: str) -> str:
        name = f"{kind}-{len(self.rows)}"
        self.rows.append({"id": name, "prompt": prompt, "completion": answer})
        self.kinds[name] = kind
        return name

    def of(self, kind: str) -> list[str]:
        return [name for name, own in self.kinds.items() if own == kind]


class Words:
    """Sentences of a vocabulary that follows Zipf's law."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "on")]
        self.known = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(6000)]
        self.weights = [1 / (place + 8) for place in range(len(self.known))]

    def some(self, count: int) -> list[str]:
        return self.rng.choices(self.known, self.weights, k=count)

    def text(self, count: int) -> str:
        sentences, left = [], count
        while left > 0:
            size = min(left, self.rng.randint(6, 16))
            sentences.append(" ".join(self.some(size)).capitalize() + ".")
            left -= size
        return " ".join(sentences)


def similarity(one: str, other: str, size: int = 5) -> float:
    """Return the Jaccard similarity of the runs of words of two texts, by its definition."""
    strip = str.maketrans("", "", string.punctuation)

    def runs(text: str) -> set[tuple[str, ...]]:
        said = text.translate(strip).lower().split()
        return {tuple(said[place : place + size]) for place in range(len(said) - size + 1)}

    left, right = runs(one), runs(other)
    return len(left & right) / len(left | right)


def planted(seed: int, rows: int, each: int) -> Planted:
    """Return ``rows`` plain rows with ``each`` of every kind of duplicate, and other kinds in proportion.

    With 500, there are 200 leaks, 60 of them short, 120 that only look like leaks, and 300 of each type of data.
    """
    rng = random.Random(seed)
    words = Words(rng)
    made = Planted()
    plain = [(words.text(rng.randint(12, 60)), words.text(rng.randint(40, 140))) for _ in range(rows)]
    for place, (prompt, answer) in enumerate(plain):
        made.rows.append({"id": f"plain-{place}", "prompt": prompt, "completion": answer})
    for prompt, answer in rng.sample(plain, each):
        made.add("exact", prompt, answer)
    for prompt, answer in rng.sample(plain, each):
        made.add("near", *_edited(prompt, answer, words))
    for prompt, answer in _of_templates(each, words):
        made.add("template", prompt, answer)
    _plant_items(made, each, words)
    _plant_data(made, each * 3 // 5, words)
    order = list(made.rows[rows:])
    rng.shuffle(order)
    made.rows[rows:] = order
    return made


def _edited(prompt: str, answer: str, words: Words) -> tuple[str, str]:
    """Return a row of similarity 0.8 or more: another spelling, or as many words replaced, put in or left out as go."""
    rng = words.rng
    before, best = f"{prompt} {answer}", (prompt.lower().replace(".", " ;"), f"{answer}  ".replace(".", "!"))
    for _ in range(rng.randint(0, 12)):
        parts = [text.split() for text in best]
        side = parts[rng.random() < 0.7]
        place = rng.randrange(len(side))
        side[place : place + 1] = rng.choice([words.some(1), [*words.some(1), side[place]], []]) or []
        if min(map(len, parts)) < 5:
            continue
        tried = (" ".join(parts[0]), " ".join(parts[1]))
        if similarity(before, " ".join(tried)) < 0.8:
            break
        best = tried
    return best


def _of_templates(count: int, words: Words) -> Iterator[tuple[str, str]]:
    rng = words.rng
    for place in range(count):
        prompt, answer = TEMPLATES[place % len(TEMPLATES)]
        slots = {
            "a": rng.randint(100, 99999), "b": rng.randint(100, 99999), "place": " ".join(words.some(2)).title(),
            "other": " ".join(words.some(2)).title(), "text": words.text(25), "line": words.text(9),
            "poem": words.text(40),
        }  # fmt: skip
        yield prompt.format(**slots), answer.format(**slots)


def _plant_items(made: Planted, each: int, words: Words) -> None:
    rng = words.rng
    leaks, short, look_alike = each * 2 // 5, each * 3 // 25, each * 6 // 25
    questions = [f"{words.text(rng.randint(5, 12)).rstrip('.').replace('.', ',')}?" for _ in range(short)]
    questions += [words.text(rng.randint(14, 60)) + " " + words.text(4) for _ in range(leaks - short)]
    for place, question in enumerate(questions):
        reference = words.text(30) if place % 7 == 6 else str(rng.randint(2, 99))
        made.items.append({"prompt": question, "reference": reference, "scorer": "exact"})
        _leak(made, question, reference, place, words)
    for place in range(look_alike):
        share = (QUOTES, FORMULAS, TEMPLATES)[place % 3]
        if share is TEMPLATES:
            prompt, _ = TEMPLATES[2]
            made.items.append(
                {"prompt": prompt.format(line=words.text(12), text=""), "reference": "yes", "scorer": "exact"}
            )
            made.add("look_alike_item", prompt.format(line=words.text(12), text=""), words.text(30))
            continue
        item, row = share[place // 3 % len(share)]
        made.items.append({"prompt": item, "reference": words.text(2), "scorer": "exact"})
        made.add("look_alike_item", f"{words.text(8)} {row} {words.text(9)}", words.text(20))
    made.items += [
        {"prompt": words.text(rng.randint(8, 40)), "reference": "7", "scorer": "exact"} for _ in range(leaks)
    ]


def _leak(made: Planted, question: str, reference: str, place: int, words: Words) -> None:
    """Leak an item's question, or its answer where that is long: alone, within a text, in an answer, or edited."""
    rng = words.rng
    short = len(question.split()) < 13
    if len(reference.split()) > 13 and not short:
        made.add("leak", words.text(12), f"{words.text(10)} {reference} {words.text(12)}")
        return
    match place % 4:
        case 0:
            made.add("leak", f"{words.text(12)} {question} {words.text(9)}", words.text(20))
        case 1:
            made.add("leak", words.text(10), f"{words.text(14)}\n\n> {question.upper()}\n{words.text(8)}")
        case 2:
            made.add("leak", f"Question:\n{question.replace('.', ' !').lower()}\nAnswer:", words.text(12))
        case _:
            said = question.split()
            if not short:
                said[rng.randrange(3, len(said) - 3)] = words.some(1)[0]
            made.add("leak", f"{words.text(5)} {' '.join(said)}", words.text(30))
    if short:
        made.kinds[made.rows[-1]["id"]] = "short_leak"


def _plant_data(made: Planted, count: int, words: Words) -> None:
    for sort, table in (("pii", PII), ("like", LOOK_ALIKES)):
        for kind, make in table.items():
            for _ in range(count):
                before, secret, after = make(words.rng)
                name = made.add(
                    f"{sort}_{kind}", words.text(12), f"{words.text(15)} {before}{secret}{after} {words.text(9)}"
                )
                made.secrets[name] = secret
