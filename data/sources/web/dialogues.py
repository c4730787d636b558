"""Conversations in pages of the web, found by their form: lines that begin with who says them.

Two forms are taken. Questions and answers that are marked as such are pairs, each a conversation of its own. Elsewhere
exactly two speakers must take turns, each twice at least: two lines such as ``Phone: …`` and ``Address: …`` are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from itertools import groupby

from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values, checked_text
from posttrain.data.sources.turns import assistant, user

ASKS = frozenset(
    ("q", "question", "user", "human", "asker", "interviewer", "customer", "frage", "pregunta", "pergunta", "domanda")
)
ANSWERS = frozenset(
    ("a", "answer", "assistant", "bot", "expert", "respuesta", "resposta", "risposta", "réponse", "antwort")
)
LEAST_TURNS = 4
"""Turns of a conversation between people whose names say nothing."""
MOST_BETWEEN = 2
"""Lines without a speaker that may stand within what one says."""
_SAYS = re.compile(r"(?P<who>[^\W\d_][\w.'’ -]{0,28}?)\s?[:：]\s+(?P<said>\S.*)")
_SKIPPED = frozenset(
    ("script", "style", "noscript", "template", "svg", "head", "nav", "header", "footer", "aside", "form", "button")
)
_INLINE = frozenset(
    ("a", "abbr", "b", "bdi", "bdo", "cite", "code", "em", "font", "i", "kbd", "mark", "q", "s", "small")
).union(("span", "strong", "sub", "sup", "time", "u", "var", "wbr"))

Turn = tuple[str, str]
"""Who, and what."""


class _Lines(HTMLParser):
    """Collects the text of a page, a line for each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped += tag in _SKIPPED
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in _SKIPPED and self._skipped > 0
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text.append(re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if tag not in _INLINE:
            self.text.append("\n")


def lines_of(page: str, media: str) -> list[str]:
    """Return the lines that a reader of a page sees, those without text left out."""
    if media != "text/plain":
        parser = _Lines()
        parser.feed(page)
        parser.close()
        page = "".join(parser.text)
    return [line for text in page.split("\n") if (line := text.strip())]


def conversations(lines: Sequence[str]) -> list[list[Turn]]:
    """Return the conversations in the lines of a page; the first speaker of each asks."""
    parts = [list(part) for run in _runs(lines) for _, part in groupby(run, lambda turn: _mark(turn) != 0)]
    return [made for part in parts for made in _of_two(part)]


def _mark(turn: Turn) -> int:
    """Return 1 where a speaker's name says that they ask, -1 where they answer, 0 where it says nothing."""
    return (turn[0].casefold() in ASKS) - (turn[0].casefold() in ANSWERS)


def _runs(lines: Sequence[str]) -> Iterator[list[Turn]]:
    """Yield turns that follow one another; a line between two of them is part of the first."""
    run: list[Turn] = []
    between: list[str] = []
    for line in lines:
        match = _SAYS.fullmatch(line)
        if match is None:
            between.append(line)
            continue
        if run and len(between) <= MOST_BETWEEN:
            who, said = run[-1]
            run[-1] = (who, "\n".join([said, *between]))
        elif run:
            yield run
            run = []
        run.append((match["who"].strip(), match["said"].strip()))
        between = []
    if run:
        yield run


def _of_two(run: Sequence[Turn]) -> Iterator[list[Turn]]:
    turns: list[Turn] = []
    for who, said in run:
        if turns and turns[-1][0] == who:
            turns[-1] = (who, f"{turns[-1][1]}\n{said}")
        else:
            turns.append((who, said))
    marks = [_mark(turn) for turn in turns]
    if all(marks):
        asked = (place for place in range(len(turns) - 1) if marks[place] > marks[place + 1])
        yield from (turns[place : place + 2] for place in asked)
    elif len({who for who, _ in turns}) == 2 and len(turns) >= LEAST_TURNS:
        yield turns[: len(turns) // 2 * 2]


def units(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield a row for each conversation of each page, and one for a page that has none or cannot be read."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        own = {name: value for name, value in row.values.items() if name != "page"}
        why = "no_answer" if row.values.get("status", 200) not in (200, None) else row.values.get("unread")
        if why is not None:
            yield Row(row.position, {**own, "dropped": f"page_{why}"})
            continue
        try:
            page = checked_text(row.values.get("page"), "page")
        except RowError as error:
            yield BadRow(row.position, str(error), own)
            continue
        found = conversations(lines_of(page, row.values.get("media") or "text/html"))
        if not found:
            yield Row(row.position, {**own, "dropped": "no_dialogue"})
        for number, turns in enumerate(found, start=1):
            named = {"id": f"{own['id']}/{number}"} if own.get("id") is not None else {}
            yield Row(f"{row.position}/{number}", {**own, **named, "turns": turns})


def demonstration(row: Values) -> Payload | Drop:
    """Return the demonstration of a `units` row, or why it is none."""
    if "dropped" in row:
        return Drop(row["dropped"])
    said = [(user, assistant)[place % 2](text) for place, (_, text) in enumerate(row["turns"])]
    return {"prompt": said[:-1], "completion": said[-1:]}
