"""Answers out of passages: the model is given them, and an answer whose claims do not stand in them is withheld."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from posttrain.data.chat.passages import with_passages
from posttrain.data.checks.attribution import Support, attribute
from posttrain.data.checks.grounding import grounded_share
from posttrain.data.messages import Json
from posttrain.sample.asking.rows import Row, read_objects
from posttrain.sample.sampling import Sample
from posttrain.stage.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Citation:
    """What of an answer stands in passages."""

    supported: dict[str, list[Support]]
    """Each quote that does, with the place of each of its parts."""
    unsupported: list[str]
    """Quotes that do not."""
    share: float
    """Of its quotes, numbers and names, those that do."""
    holds: bool
    """Whether it quotes at all, and the share is as large as was asked."""

    @property
    def reason(self) -> str:
        """Why it does not hold, in a few words."""
        if not self.supported:
            return "it quotes nothing that stands in the passages"
        return f"{self.share:.0%} of its quotes, numbers and names stand in the passages"


def read_passages(source: str, rows: Sequence[Row]) -> list[list[str]]:
    """Return the passages of each row: its own ``passages``, or else those of a file.

    The file is JSONL of objects with a ``text``, or a text with blank lines between passages. Raises UsageError where
    a row has none, or what it has are no texts.
    """
    shared = _read_file(Path(source)) if source else None
    return [_own(row) or _require(shared, row) for row in rows]


def asked_of(row: Row, passages: Sequence[str]) -> Row:
    """Return a row whose conversation gives the passages, by number, in its system message."""
    return dataclasses.replace(row, conversation=with_passages(row.conversation, passages))


def cite(sample: Sample, passages: Sequence[str], least: float) -> Citation:
    """Return what of an answer stands in passages; it holds with a share of at least ``least``."""
    found = attribute(sample.text, passages)
    share = grounded_share(sample.text, passages)
    holds = sample.answered and bool(found.supported) and share >= least
    return Citation(found.supported, found.unsupported, share, holds)


def withhold(response: Json, citation: Citation) -> Json:
    """Return a response as JSON with its citations; one that does not hold has no text, and says what it held."""
    quotes = [
        {"quote": quote, **dataclasses.asdict(support)}
        for quote, supports in citation.supported.items()
        for support in supports
    ]
    cited = {
        "cited": citation.holds,
        "grounded": citation.share,
        "quotes": quotes,
        "unsupported": citation.unsupported,
    }
    held = {} if citation.holds else {"text": "", "withheld": response["text"]}
    return response | held | cited


def _read_file(source: Path) -> list[str]:
    if source.suffix == ".jsonl":
        passages = [_text(value["text"], place) for place, value in read_objects(source, "text")]
    else:
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--cite: {source}: {error}; give a file of passages") from None
        passages = [passage for part in text.split("\n\n") if (passage := part.strip())]
    if not passages:
        raise UsageError(f"--cite: {source}: no passage; put blank lines between them, or give JSONL with a text each")
    return passages


def _own(row: Row) -> list[str]:
    passages = row.fields.get("passages", [])
    if not isinstance(passages, list):
        raise UsageError(f"{row.place}: passages: {type(passages).__name__}; give a list of texts")
    return [_text(passage, f"{row.place}: passages") for passage in passages]


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{place}: {value!r}; give a text")
    return value


def _require(passages: list[str] | None, row: Row) -> list[str]:
    if passages is None:
        raise UsageError(f'{row.place}: no passages; give it a list of texts as "passages", or --cite FILE')
    return passages
