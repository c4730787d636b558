"""How far responses keep to the passages that they were given: figures of items whose scorer is `grounded`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from posttrain.data.checks.sourced import NAME, Weighed, parse_sources, weigh
from posttrain.evaluate.measure.statistics import clustered_proportion


class Answered(Protocol):
    """A response to an item."""

    @property
    def scorer(self) -> str:
        """What judges it."""
        ...

    @property
    def reference(self) -> str:
        """What it is judged by."""
        ...

    @property
    def shown(self) -> str:
        """The answer."""
        ...


class Figure(NamedTuple):
    """A share over the responses for which it is not None."""

    name: str
    meaning: str
    read: Callable[[Weighed], float | None]


FIGURES = (
    Figure(
        "grounded", "of a response's quotes, numbers and names, those that stand in its passages", lambda w: w.grounded
    ),
    Figure(
        "cited",
        "responses that cite what stands in their passages, where these hold the answer",
        lambda w: float(w.supported > 0) if w.answerable else None,
    ),
    Figure("precision", "of a response's citations, those of what holds the answer", lambda w: w.precision),
    Figure("recall", "of the texts that hold the answer, those cited", lambda w: w.recall),
    Figure(
        "abstained_right",
        "responses that abstain, where the passages lack the answer",
        lambda w: float(w.abstained) if w.answerable is False else None,
    ),
    Figure(
        "abstained_wrong",
        "responses that abstain, where the passages hold the answer",
        lambda w: float(w.abstained) if w.answerable else None,
    ),
)


def weighed_item(item: Answered) -> Weighed | None:
    """Return an item's response, held against its passages; None for an item that is not judged by them."""
    return weigh(item.shown, parse_sources(item.reference)) if item.scorer == NAME else None


def grounded_of(item: Answered) -> float | None:
    """Return the share of what a response claims that stands in its passages; None as `weighed_item`."""
    weighed = weighed_item(item)
    return None if weighed is None else weighed.grounded


def sourced_figures(items: Sequence[Any], confidence: float) -> dict[str, Any] | None:
    """Return every figure of `FIGURES` that some item has, as an interval clustered by question; None without any."""
    found = [(item, weighed) for item in items if (weighed := weighed_item(item)) is not None]
    figures = {figure.name: _share(figure, found, confidence) for figure in FIGURES}
    return {name: share for name, share in figures.items() if share is not None} or None


def _share(figure: Figure, found: Iterable[tuple[Any, Weighed]], confidence: float) -> dict[str, Any] | None:
    values = [(item.cluster, value) for item, weighed in found if (value := figure.read(weighed)) is not None]
    if not values:
        return None
    return clustered_proportion([value for _, value in values], [name for name, _ in values], confidence).as_dict()
