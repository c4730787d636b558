"""Figures of score against KL to the reference, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from posttrain.evaluate.page.drift_rows import Drift
from posttrain.evaluate.page.plots import INK, STYLE, color, new_figure, to_svg


def score_by_kl(drifts: Sequence[Drift], name: str) -> str:
    """Return score against KL per response: a point for each policy, a line from the reference for each method.

    ``drifts`` have one reference. Bars are the intervals of both figures.
    """
    origin = next((drift for drift in drifts if drift.is_origin), None)
    methods: dict[str, list[Drift]] = {}
    for drift in drifts:
        if not drift.is_origin:
            methods.setdefault(drift.method, []).append(drift)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.6, 3.6)
        for index, (method, own) in enumerate(methods.items()):
            path = [*([origin] if origin is not None else []), *sorted(own, key=lambda d: d.figures["kl"]["value"])]
            _line(axes, path, color(index))
            _points(axes, own, color(index), method)
        if origin is not None:
            _points(axes, [origin], INK, f"{origin.label}, the reference")
        axes.set_xlabel("KL to the reference, nats per response")
        axes.set_ylabel("mean score")
        axes.margins(x=0.09, y=0.14)
        figure.legend(loc="outside upper left", ncols=4, fontsize=8.5, handlelength=1.2, columnspacing=1.2)
        return to_svg(figure, name, "Mean score of fresh samples against their KL to the reference, by method")


def _line(axes: Axes, drifts: Sequence[Drift], shade: str) -> None:
    x, y = ([drift.figures[figure]["value"] for drift in drifts] for figure in ("kl", "score"))
    axes.plot(x, y, color=shade, linewidth=1.2, alpha=0.7)


def _points(axes: Axes, drifts: Sequence[Drift], shade: str, label: str) -> None:
    x, x_error = _bars(drifts, "kl")
    y, y_error = _bars(drifts, "score")
    style: dict[str, Any] = {"fmt": "o", "color": shade, "markersize": 4.5, "elinewidth": 0.9, "capsize": 2}
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, label=label, **style)
    for drift, place in zip(drifts, zip(x, y, strict=True), strict=True):
        axes.annotate(drift.label, place, (5, -10), textcoords="offset points", fontsize=7.5)


def _bars(drifts: Sequence[Drift], figure: str) -> tuple[list[float], list[list[float]]]:
    """Return the values of a figure, and how far their intervals reach below and above."""
    found = [drift.figures[figure] for drift in drifts]
    values = [own["value"] for own in found]
    return values, [[own["value"] - own["low"] for own in found], [own["high"] - own["value"] for own in found]]


def rollout_path(kls: Sequence[float], scores: Sequence[float], name: str) -> str:
    """Return the way of a training run, rollout by rollout: mean score against mean KL, from the ring to the dot."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(3.5, 2.3)
        axes.plot(kls, scores, color=color(0), linewidth=1.2, marker="o", markersize=2.2)
        axes.plot(kls[:1], scores[:1], color=color(1), linestyle="", marker="o", markersize=6, fillstyle="none")
        axes.plot(kls[-1:], scores[-1:], color=color(1), linestyle="", marker="o", markersize=5)
        axes.set_xlabel("KL to the reference, nats per response")
        axes.set_ylabel("score")
        axes.set_title("Score against KL, by rollout")
        return to_svg(figure, name, "Mean score against mean KL to the reference, rollout by rollout")
