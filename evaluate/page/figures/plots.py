"""Figures as SVG text to put into a page: they scale, follow the page's text colour, and load nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, those of most contrast on white and on black first."""

INK = "#010203"
"""Stands for the page's text colour until the figure is SVG."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "posttrain",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}

Curve = tuple[str, Sequence[float], Sequence[float]]
"""Label, steps, values."""


def color(index: int) -> str:
    """Return the colour of the n-th series; more than the palette has start again."""
    return PALETTE[index % len(PALETTE)]


def curves(title: str, y_label: str, lines: Sequence[Curve], name: str) -> str:
    """Return a line chart over optimizer steps as SVG. ``name`` is unique on the page."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.5, 2.3)
        for index, (label, steps, values) in enumerate(lines):
            marker = "o" if len(steps) <= 12 else None
            axes.plot(steps, values, color=color(index), linewidth=1.4, marker=marker, markersize=3.5, label=label)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(y_label)
        axes.set_title(title)
        if len(lines) > 1:
            axes.legend(fontsize=8, handlelength=1.4)
        return to_svg(figure, name, f"{title}: {y_label} by optimizer step")


def grouped_bars(
    x_label: str, groups: Sequence[str], series: Mapping[str, Mapping[str, Mapping[str, float]]], name: str
) -> str:
    """Return horizontal bars with intervals: for each group one bar a series, in the order given, from the top.

    ``series`` maps a series to its groups' ``{"value", "low", "high"}``; a group that a series lacks has no bar.
    """
    with matplotlib.rc_context(STYLE):
        rows = len(groups) * (len(series) + 1)
        figure, axes = new_figure(4.6, 0.75 + 0.175 * rows)
        for index, (label, figures) in enumerate(series.items()):
            present = [(g, figures[group]) for g, group in enumerate(groups) if group in figures]
            places = [g * (len(series) + 1) + index for g, _ in present]
            values = [figure["value"] for _, figure in present]
            errors = [[f["value"] - f["low"] for _, f in present], [f["high"] - f["value"] for _, f in present]]
            axes.barh(places, values, height=0.86, color=color(index), label=label)
            axes.errorbar(values, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.8)
            for place, (_, figure_of_bar) in zip(places, present, strict=True):
                _annotate(axes, place, figure_of_bar)
        axes.set_yticks([g * (len(series) + 1) + (len(series) - 1) / 2 for g in range(len(groups))], groups)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel(x_label)
        figure.legend(loc="outside upper left", ncols=4, fontsize=8.5, handlelength=1, columnspacing=1.2)
        _limits(axes, [f for figures in series.values() for f in figures.values()])
        return to_svg(figure, name, f"{x_label} of {', '.join(series)} by group")


def _annotate(axes: Axes, place: float, figure: Mapping[str, float]) -> None:
    axes.annotate(
        f"{figure['value']:.2f}".replace("-", "−"),
        (max(figure["high"], 0), place),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
    )


def _limits(axes: Axes, figures: Sequence[Mapping[str, float]]) -> None:
    low = min(0.0, *(figure["low"] for figure in figures), 0.0)
    high = max(1.0, *(figure["high"] for figure in figures))
    room = 0.1 * (high - low)
    axes.set_xlim(low - (room / 4 if low < 0 else 0), high + room)
    if low < 0:
        axes.axvline(0, color=INK, linewidth=0.6)


def reliability(bins: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return accuracy against the predicted probability, one point with its interval for each bin of margins."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.5, 2.9)
        x = [part["predicted"] for part in bins]
        y = [part["accuracy"] for part in bins]
        errors = [[p["accuracy"] - p["low"] for p in bins], [p["high"] - p["accuracy"] for p in bins]]
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="perfectly calibrated")
        axes.errorbar(x, y, yerr=errors, fmt="o", color=color(0), markersize=4, elinewidth=0.9, label="tenth of pairs")
        axes.set_xlabel("predicted probability of the preferred response")
        axes.set_ylabel("accuracy")
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(min(0.45, *(p["low"] for p in bins)) - 0.02, 1.03)
        axes.legend(fontsize=8, loc="lower right", handlelength=1.6)
        return to_svg(figure, name, "Reward model calibration: accuracy by predicted probability")


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches with one pair of axes; call it within ``rc_context(STYLE)``."""
    figure, axes = new_panels(width, height, 1)
    return figure, axes[0]


def new_panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with pairs of axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an SVG element whose ids start with ``name``, so that figures of one page do not clash."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg class="figure" role="img" aria-label="{label}"', 1)
