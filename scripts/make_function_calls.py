"""Rows that teach function calls: demonstrations, pairs of a right and a wrong call, and items of unseen questions.

    python scripts/make_function_calls.py FOLDER

The demonstrations ask for 18 cities and 28 amounts of money; the items for six other cities and twelve other amounts,
each twice: is the call valid under the tool's schema (`valid_call`), and is it the right one (`call`)?
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CITIES = (
    *("Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Quito", "Turin", "Accra", "Perth"),
    *("Malmo", "Riga", "Izmir", "Porto", "Sofia", "Bergen", "Kyoto", "Leeds", "Fez"),
)
UNSEEN_CITIES = ("Dakar", "Ghent", "Pune", "Tartu", "Cusco", "Bari")
AMOUNTS, UNSEEN_AMOUNTS = range(3, 87, 3), range(100, 160, 5)
MONEY = ("EUR", "USD", "GBP", "JPY", "CHF")


def tool(name: str, description: str, **parameters: str) -> Row:
    """Return the definition of a function of required parameters, given by name and type."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("get_weather", "Weather of a city.", city="string"),
    tool("convert", "Converts money.", amount="integer", source="string", target="string"),
]


def call(name: str, **arguments: object) -> Row:
    """Return a call."""
    return {"name": name, "arguments": arguments}


def user(text: str) -> Row:
    """Return a question's message."""
    return {"role": "user", "content": text}


def assistant(made: Row) -> Row:
    """Return the message that makes a call."""
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": made}]}


def questions(cities: Iterable[str], amounts: Iterable[int], rng: random.Random) -> list[tuple[str, Row, Row]]:
    """Return questions, each with its right call and a wrong one that is valid all the same."""
    cities, made = list(cities), []
    for city in cities:
        other = rng.choice([one for one in cities if one != city])
        right, wrong = call("get_weather", city=city), call("get_weather", city=other)
        made += [(f"What is the weather in {city}?", right, wrong), (f"Is it raining in {city} now?", right, wrong)]
    for amount in amounts:
        source, target = rng.sample(MONEY, 2)
        right = call("convert", amount=amount, source=source, target=target)
        wrong = call("convert", amount=amount, source=target, target=source)
        made.append((f"How much is {amount} {source} in {target}?", right, wrong))
    rng.shuffle(made)
    return made


def demonstration(question: str, right: Row, wrong: Row) -> Row:
    """Return a row of SFT."""
    return {"messages": [user(question), assistant(right)], "tools": TOOLS}


def comparison(question: str, right: Row, wrong: Row) -> Row:
    """Return a row of DPO."""
    return {"prompt": [user(question)], "chosen": [assistant(right)], "rejected": [assistant(wrong)], "tools": TOOLS}


def items(number: int, question: str, right: Row) -> list[Row]:
    """Return a question's two items; the tasks are the scorers' names."""
    asked = {"prompt": [user(question)], "tools": TOOLS}
    references = {"call": [right], "valid_call": TOOLS}
    return [
        {"id": f"{scorer}{number}", **asked, "reference": json.dumps(reference), "scorer": scorer, "task": scorer}
        for scorer, reference in references.items()
    ]


def main(folder: Path) -> None:
    """Write the three files."""
    rng = random.Random(0)
    trained = questions(CITIES, AMOUNTS, rng)
    unseen = questions(UNSEEN_CITIES, UNSEEN_AMOUNTS, rng)
    rows = {
        "demonstrations": [demonstration(*one) for one in trained],
        "comparisons": [comparison(*one) for one in trained],
        "items": [item for number, (asked, right, _) in enumerate(unseen) for item in items(number, asked, right)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in made), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
