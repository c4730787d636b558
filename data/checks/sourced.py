"""Does a response keep to its sources? It answers out of the passages and cites them, or says that it does not know.

A reference is a JSON object. Of its fields, ``passages`` are what the model was given, which `data.retrieve` fills in;
``gold`` the texts that hold the answer, none where no source has it; ``answer`` what a right response names, as the
scorer `answer` reads it: ``right|other|other``. The last two may be absent, where nobody knows.

A citation is a quote (`posttrain.data.checks.attribution`), or the number of a passage: ``[2]``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from posttrain.data.checks.attribution import find_quote, quotes_of
from posttrain.data.checks.grounding import MARKER, grounded_share
from posttrain.data.checks.refusals import abstains, answer
from posttrain.data.checks.wording import named_spans
from posttrain.stage.errors import UsageError

NAME = "grounded"
"""The scorer's."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a response is held against."""

    passages: list[str] | None
    """None before they are retrieved."""
    gold: list[str] | None
    """None where nobody knows which text holds the answer."""
    answer: str | None

    @property
    def held(self) -> list[str]:
        """The texts with the answer that stand in the passages."""
        return [text for text in self.gold or [] if find_quote(text, self.passages or [])]

    @property
    def answerable(self) -> bool | None:
        """Whether the passages hold the answer; None where nobody knows."""
        return None if self.gold is None else bool(self.held)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """One response, held against its sources."""

    answerable: bool | None
    abstained: bool
    grounded: float
    """Share of its quotes, numbers and names that stand in the passages; 1 where it claims nothing."""
    citations: int
    supported: int
    """Citations of what stands in the passages."""
    right: int
    """Those of a passage that holds the answer; where nobody knows which does, all that are supported."""
    gold: int
    """Texts with the answer among the passages."""
    gold_cited: int

    @property
    def precision(self) -> float | None:
        """Share of the citations that are right; None without any."""
        return self.right / self.citations if self.citations else None

    @property
    def recall(self) -> float | None:
        """Share of the texts with the answer that are cited; None where there is none."""
        return self.gold_cited / self.gold if self.gold else None


def parse_sources(reference: str) -> Sources:
    """Return the sources of a reference. Raises UsageError where it is no such object."""
    try:
        value = json.loads(reference)
    except ValueError as error:
        raise UsageError(f"reference {reference[:60]!r}: {error}; give a JSON object with gold and answer") from None
    if not isinstance(value, dict) or not {*value} <= {"passages", "gold", "answer"}:
        raise UsageError(f"reference {reference[:60]!r}: give a JSON object of passages, gold and answer alone")
    wanted = value.get("answer")
    if wanted is not None and not (isinstance(wanted, str) and wanted.split("|")[0].strip()):
        raise UsageError(f"reference: answer {wanted!r}; give a text: right|other|other")
    return Sources(_texts(value, "passages"), _texts(value, "gold"), wanted)


def _texts(value: dict[str, Any], name: str) -> list[str] | None:
    texts = value.get(name)
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UsageError(f"reference: {name} {texts!r}; give a list of texts")
    return list(texts)


def require_passages(reference: str) -> Sources:
    """Return the sources of a reference that has passages; raise UsageError where nobody has retrieved them."""
    sources = parse_sources(reference)
    if sources.passages is None:
        raise UsageError("reference: no passages, which a response is held against; let data.retrieve put them in")
    return sources


def given_passages(reference: str, passages: Sequence[str]) -> str:
    """Return a reference with the passages that a prompt was given, in place of any that it had."""
    value = json.loads(reference)
    return json.dumps(value | {"passages": list(passages)}, ensure_ascii=False, sort_keys=True)


def keeps_to_sources(response: str, reference: str) -> float:
    """Return 1 for a response that its passages bear out: the scorer `grounded`.

    Where they hold the answer it gives it (where that is known), cites, and every quote, number and name in it stands
    in them. Where they do not, it abstains and names none of the answers. Where nobody knows, either will do.
    """
    sources = require_passages(reference)
    weighed = weigh(response, sources)
    abstained = weighed.abstained and not weighed.citations and not _names(response, sources.answer)
    if weighed.answerable is False:
        return float(abstained)
    borne_out = not weighed.abstained and 0 < weighed.supported == weighed.citations and weighed.grounded == 1.0
    if weighed.answerable is None:
        return float(borne_out or abstained)
    return float(borne_out and weighed.right > 0 and (sources.answer is None or answer(response, sources.answer) == 1))


def _names(response: str, wanted: str | None) -> bool:
    """Return whether a response names an answer; where there is none, a reference may have the abstention for one."""
    return wanted is not None and bool(named_spans(response, [one for one in wanted.split("|") if not abstains(one)]))


def weigh(response: str, sources: Sources) -> Weighed:
    """Hold a response against its sources."""
    passages = sources.passages or []
    held = sources.held
    texts = {f'"{quote}"': quote for quote in quotes_of(response) if find_quote(quote, passages)}
    numbers = dict.fromkeys(int(number) for number in MARKER.findall(response))
    texts |= {f"[{number}]": passages[number - 1] for number in numbers if 0 < number <= len(passages)}
    right = sum(_bears(text, held) for text in texts.values()) if sources.gold is not None else len(texts)
    return Weighed(
        answerable=sources.answerable,
        abstained=abstains(response),
        grounded=grounded_share(response, passages),
        citations=len(quotes_of(response)) + len(numbers),
        supported=len(texts),
        right=right,
        gold=len(held),
        gold_cited=sum(any(_bears(text, [gold]) for text in texts.values()) for gold in held),
    )


def _bears(text: str, gold: Sequence[str]) -> bool:
    """Return whether a cited text is one with the answer, a part of it, or has it in it."""
    return any(find_quote(text, [one]) or find_quote(one, [text]) for one in gold)
