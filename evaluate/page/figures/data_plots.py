"""Figures of a dataset, as SVG: its rows from step to step, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter, LogLocator

from posttrain.evaluate.page.data_flow import FlowStep
from posttrain.evaluate.page.figures.plots import PALETTE, STYLE, color, new_figure, to_svg

OTHERS = "other sources"
_BINS = 40


def flow_bars(flow: Sequence[FlowStep], name: str) -> str:
    """Return the rows that are left after each step, from the top, each bar made of its sources."""
    rows = [("in", flow[0].rows_in), *((step.name.replace("_", " "), step.kept) for step in flow)]
    series = _few({source: [own[source] for _, own in rows] for source in flow[0].rows_in})
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.6, 0.85 + 0.24 * len(rows))
        places = range(len(rows))
        left = np.zeros(len(rows))
        for index, (source, counts) in enumerate(series.items()):
            axes.barh(places, counts, left=left, height=0.72, color=color(index), label=source)
            left = left + counts
        for place, total in zip(places, left, strict=True):
            axes.annotate(f"{total:,.0f}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(places, [label for label, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, max(left) * 1.16)
        axes.set_xlabel("rows left after each step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.locator_params(axis="x", nbins=5)
        figure.legend(loc="outside upper left", ncols=3, fontsize=8.5, handlelength=1, columnspacing=1.2)
        return to_svg(figure, name, "Rows left after each step of curation, by source")


def _few(series: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return the sources of most rows, and the others as one, where there are more than colours."""
    ordered = sorted(series, key=lambda source: -series[source][0])
    if len(ordered) <= len(PALETTE):
        return dict(series)
    kept, rest = ordered[: len(PALETTE) - 1], ordered[len(PALETTE) - 1 :]
    others = [sum(counts) for counts in zip(*(series[source] for source in rest), strict=True)]
    return {source: series[source] for source in kept} | {OTHERS: others}


def lengths(by_source: Mapping[str, npt.NDArray[np.int64]], unit: str, name: str) -> str:
    """Return how many rows of each source are how long, on a logarithmic axis."""
    groups = list(by_source.items())
    shown = dict(groups[: len(PALETTE)])
    least = max(1, min(int(own.min()) for own in shown.values()))
    longest = max(int(own.max()) for own in shown.values())
    edges = np.unique(np.geomspace(least, max(longest, least + 1) + 1, _BINS).round())
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.6, 2.5)
        for index, (source, own) in enumerate(shown.items()):
            counts, _ = np.histogram(np.maximum(own, 1), edges)
            axes.stairs(counts, edges, color=color(index), linewidth=1.5, label=source)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{unit} of a row")
        axes.set_ylabel("rows")
        figure.legend(loc="outside upper left", ncols=3, fontsize=8.5, handlelength=1.4, columnspacing=1.2)
        return to_svg(figure, name, f"Rows by their length in {unit}, for each source")
