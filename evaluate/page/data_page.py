"""The page about curated datasets: what each step did to which rows, and what the rows that stay are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from posttrain.evaluate.page.accounting import TERMS, Account
from posttrain.evaluate.page.data_flow import FlowStep
from posttrain.evaluate.page.data_rows import Rows, by, figures
from posttrain.evaluate.page.data_samples import PII, Told
from posttrain.evaluate.page.figures import data_plots
from posttrain.evaluate.page.templates import page_environment

NEAR = ("near_duplicate", "near_duplicate_of_held_out")
"""Reasons of rows that are shown beside the row that stays."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What the page says of one dataset."""

    label: str
    record_type: str
    flow: list[FlowStep]
    told: Told
    rows: Rows
    sources: dict[str, dict[str, Any]]
    """What the manifest says of each source."""
    annotators: dict[str, Any] | None
    """Figures of the annotators of comparisons."""

    def says(self, term: str) -> bool:
        """Return whether something is said of any source's term."""
        return any(facts.get(term) for facts in self.sources.values())

    def summary(self, limit: int | None) -> dict[str, Any]:
        """Return the figures as plain values."""
        parts: dict[str, Any] = {
            "record_type": self.record_type,
            "flow": [dataclasses.asdict(step) for step in self.flow],
            "languages": counts_by(self.rows.languages),
            "tasks": counts_by(self.rows.tasks),
            "licences": _nested(self.rows.licences),
            "personal_data": self.personal_data(),
            "annotators": self.annotators,
        }
        for unit, lengths, most in (("characters", self.rows.characters, None), ("tokens", self.rows.tokens, limit)):
            if lengths:
                parts[unit] = {
                    "by_source": {name: figures(own, most) for name, own in by(lengths, 0).items()},
                    "by_language": {name: figures(own, most) for name, own in by(lengths, 1).items()},
                }
        return parts

    def personal_data(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return rows and places by type of personal data and source."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (_, _, reason, source), rows in sorted(self.told.events.items()):
            if reason.startswith(PII):
                kind = reason.removeprefix(PII)
                places = self.told.places[kind, source]
                found.setdefault(kind, {})[source] = {"rows": rows, "places": places}
        return found


def counts_by(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Return (group, split) → rows as group → rows on either side and in all, the largest group first."""
    found: dict[str, dict[str, int]] = {}
    for (name, split), rows in counts.items():
        own = found.setdefault(name, {"train": 0, "eval": 0, "rows": 0})
        own[split] += rows
        own["rows"] += rows
    return dict(sorted(found.items(), key=lambda pair: (-pair[1]["rows"], pair[0])))


def _nested(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (outer, inner), rows in sorted(counts.items()):
        found.setdefault(outer, {})[inner] = rows
    return found


def render_data_page(
    title: str, datasets: Sequence[Dataset], accounts: Sequence[Account], limit: int | None, headline: str
) -> str:
    """Return the page as one HTML text that loads nothing. All values are escaped; figures are inline SVG."""
    summaries = {dataset.label: dataset.summary(limit) for dataset in datasets}
    return (
        page_environment()
        .get_template("data.html.j2")
        .render(
            title=title,
            headline=headline,
            accounts=accounts,
            datasets=datasets,
            summaries=summaries,
            anchors={dataset.label: f"data-{index}" for index, dataset in enumerate(datasets)},
            pictures={dataset.label: list(_pictures(dataset, index)) for index, dataset in enumerate(datasets)},
            limit=limit,
            near=NEAR,
            terms=TERMS,
            browser=None,
        )
    )


def _pictures(dataset: Dataset, index: int) -> Iterable[Markup]:
    yield Markup(data_plots.flow_bars(dataset.flow, f"flow{index}"))
    for unit, lengths in (("characters", dataset.rows.characters), ("tokens", dataset.rows.tokens)):
        if lengths:
            yield Markup(data_plots.lengths(by(lengths, 0), unit, f"{unit}{index}"))
