"""The browser of items: what every policy answered, as data of the page, and the script that shows a part of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.page.templates import clip

SCRIPT = "browser.js.j2"


@dataclasses.dataclass(frozen=True)
class Browser:
    """What a page needs to let a reader look through items."""

    data: Markup
    """JSON in which nothing can end the element that holds it."""
    script: Markup
    count: int
    """Items that it shows."""
    left_out: int

    @property
    def source(self) -> Markup:
        """What the page's Content-Security-Policy allows to run: this script alone, by its hash."""
        digest = hashlib.sha256(self.script.encode("utf-8")).digest()
        return Markup("'sha256-{}'").format(base64.b64encode(digest).decode("ascii"))


def browser_of(sets: Sequence[tuple[str, Sequence[str], Sequence[Sequence[ScoredItem]]]], most: int) -> Browser | None:
    """Return a browser of sets of items, each with its name, the labels of policies and what each of them answered.

    At most ``most`` items of a set are shown, the first ones; None where there is nothing to show.
    """
    shown: list[dict[str, Any]] = []
    left_out = 0
    for name, labels, answered in sets:
        rows = _rows(answered)
        left_out += max(0, len(rows) - most)
        if rows[:most]:
            shown.append({"name": name, "policies": list(labels), "items": rows[:most]})
    if not shown:
        return None
    text = json.dumps(shown, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    script = (Path(__file__).parent / SCRIPT).read_text(encoding="utf-8")
    return Browser(Markup(text), Markup(script), sum(len(one["items"]) for one in shown), left_out)


def _rows(answered: Sequence[Sequence[ScoredItem]]) -> list[list[Any]]:
    """Return a row for each item that any policy answered: id, task, language, prompt, reference, ideal, answers."""
    by_id = [{item.id: item for item in items} for items in answered]
    first: dict[str, ScoredItem] = {}
    for own in by_id:
        first = own | first
    ordered = sorted(first.values(), key=lambda item: (item.task, item.language, item.id))
    return [
        [
            *(item.id, item.task, item.language, clip(item.prompt), clip(item.reference), clip(item.ideal or "")),
            [_answer(own.get(item.id)) for own in by_id],
        ]
        for item in ordered
    ]


def _answer(item: ScoredItem | None) -> list[Any] | None:
    if item is None:
        return None
    preference = None if item.preference is None else round(item.preference, 4)
    return [round(item.correct, 4), preference, clip(item.shown), int(item.ended)]
