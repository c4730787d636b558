"""The page of `posttrain compare`: in the report's look, and it loads nothing either."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.evaluate.page.browser import Browser, browser_of
from posttrain.evaluate.page.compare import METRIC_NAMES
from posttrain.evaluate.page.narrow import label_cells
from posttrain.evaluate.page.templates import page_environment, percent
from posttrain.evaluate.page.two_sides import Comparison, reading

MOST_ITEMS = 10_000
"""Items of a comparison that the page has."""


def render_comparisons(title: str, comparisons: Sequence[Comparison], confidence: float) -> str:
    """Return comparisons as one HTML text; all values are escaped."""
    return label_cells(
        page_environment()
        .get_template("compare.html.j2")
        .render(
            title=title,
            headline=headline_of(comparisons, confidence),
            percent=percent(confidence),
            confidence=confidence,
            comparisons=comparisons,
            metric_names=METRIC_NAMES,
            reading=reading,
            browser=_browser(comparisons),
        )
    )


def _browser(comparisons: Sequence[Comparison]) -> Browser | None:
    sets = [(one.name, (one.first, one.second), tuple(zip(*one.items, strict=True))) for one in comparisons]
    return browser_of(sets, MOST_ITEMS)


def headline_of(comparisons: Sequence[Comparison], confidence: float) -> str:
    """Return in one sentence what each comparison says over all items."""
    said = [
        f"{one.name}: {METRIC_NAMES[row['metric']]} of {one.second} {reading(row, confidence)}"
        for one in comparisons
        for row in one.overall
    ]
    return "; ".join(said) or "nothing was answered on both sides"
