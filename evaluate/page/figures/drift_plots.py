"""Figures of score against KL to the reference, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from posttrain.evaluate.measure.drift_scores import PROXY
from posttrain.evaluate.page.drift_rows import Drift
from posttrain.evaluate.page.figures.plots import INK, STYLE, color, new_figure, new_panels, to_svg


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


def gold_and_proxy(drifts: Sequence[Drift], name: str) -> str | None:
    """Return what policies gained by the true score and by the reward that they were trained on, over KL.

    One line for each method, from the reference. None where the reward is not known of any.
    """
    methods: dict[str, list[Drift]] = {}
    for drift in drifts:
        if drift.change is not None and PROXY in drift.change:
            methods.setdefault(drift.method, []).append(drift)
    if not methods:
        return None
    titles = {"score": "gold: the score", PROXY: "proxy: the reward, in deviations"}
    with matplotlib.rc_context(STYLE):
        figure, panels = new_panels(7.4, 3.2, len(titles))
        for axes, (measure, title) in zip(panels, titles.items(), strict=True):
            for index, (method, own) in enumerate(methods.items()):
                path = sorted(own, key=lambda d: d.figures["kl"]["value"])
                found = [drift.change[measure] for drift in path if drift.change is not None]
                x, x_error = _bars(path, "kl")
                y = [point["value"] for point in found]
                y_error = [[p["value"] - p["low"] for p in found], [p["high"] - p["value"] for p in found]]
                axes.plot([0, *x], [0, *y], color=color(index), linewidth=1.2, alpha=0.7)
                style: dict[str, Any] = {"fmt": "o", "color": color(index), "markersize": 4, "elinewidth": 0.9}
                axes.errorbar(x, y, xerr=x_error, yerr=y_error, label=method, capsize=2, **style)
            axes.set_title(title)
            axes.set_xlabel("KL to the reference, nats per response")
        panels[0].set_ylabel("change from the reference")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=8.5, handlelength=1.2)
        return to_svg(figure, name, "Change in score and in the reward trained on, against KL to the reference")


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
