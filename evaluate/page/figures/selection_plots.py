"""Figures of what choosing among N samples buys, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from posttrain.evaluate.page.figures.plots import INK, STYLE, color, new_figure, new_panels, to_svg

SELECTOR_NAMES = {
    "oracle": "oracle",
    "reward": "reward model",
    "majority": "majority vote",
    "logprob": "average log-probability",
}
"""In the order of the legend, best first as a rule."""
MEASURE_NAMES = {"correct": "share right", "preference": "true preference"}
_DASHED = (0, (4, 3))


def selection_curves(figures: Mapping[str, Any], name: str) -> str:
    """Return the value of the chosen sample by number of samples: one panel per measure, one line per selector."""
    with matplotlib.rc_context(STYLE):
        figure, panels = new_panels(3.5 * len(figures["curves"]), 3.0, len(figures["curves"]))
        for axes, (measure, selectors) in zip(panels, figures["curves"].items(), strict=True):
            for index, (selector, label) in enumerate(SELECTOR_NAMES.items()):
                _line(axes, selectors[selector], label, color(index), _DASHED if selector == "oracle" else "-")
            _count_axis(axes, figures["sizes"])
            axes.set_ylabel(MEASURE_NAMES[measure])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=8, handlelength=1.8)
        return to_svg(figure, name, "Value of the sample chosen among N, by number of samples and way of choosing")


def over_optimisation(figures: Mapping[str, Any], name: str) -> str:
    """Return what the sample of the highest reward gains by the reward and by the true preference."""
    found = figures["over_optimisation"]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.4, 3.2)
        _line(axes, found["proxy"], "proxy: the reward model", color(0))
        _line(axes, found["gold"], "gold: the true preference", color(1))
        _line(axes, found["best_gold"], "gold, chosen by itself", color(2), _DASHED)
        _count_axis(axes, figures["sizes"])
        axes.set_ylabel("gain, in standard deviations")
        figure.legend(loc="outside upper left", ncols=2, fontsize=8, handlelength=1.8)
        return to_svg(
            figure, name, "Gain of the sample of the highest reward, by the reward and by the true preference"
        )


ENSEMBLE_NAMES = {
    "single": "one reward model",
    "worst": "worst of all",
    "uncertainty": "mean less variance",
    "mean": "mean of all",
}


def ensemble(figures: Mapping[str, Any], name: str) -> str:
    """Return what the best of N by one reward model and by several gains, by the true preference and by the reward."""
    found = figures["ensemble"]
    titles = {"gold": "gold: the true preference", "proxy": "proxy: what chose"}
    with matplotlib.rc_context(STYLE):
        figure, panels = new_panels(7.4, 3.2, len(titles))
        for axes, (measure, title) in zip(panels, titles.items(), strict=True):
            for index, (way, label) in enumerate(ENSEMBLE_NAMES.items()):
                _line(axes, found[measure][way], label, color(index), "-" if way in ("single", "worst") else _DASHED)
            _count_axis(axes, figures["sizes"])
            axes.set_title(title)
        panels[0].set_ylabel("gain, in standard deviations")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=8, handlelength=1.8)
        return to_svg(figure, name, "Gain of the best of N by one reward model and by several, gold and proxy")


def _line(axes: Axes, points: Sequence[Mapping[str, float]], label: str, shade: str, style: Any = "-") -> None:
    sizes, values = [point["k"] for point in points], [point["value"] for point in points]
    axes.plot(sizes, values, color=shade, linewidth=1.4, linestyle=style, marker="o", markersize=3, label=label)
    lows, highs = [point["low"] for point in points], [point["high"] for point in points]
    axes.fill_between(sizes, lows, highs, color=shade, alpha=0.12, linewidth=0)


def _count_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("samples N")


def reliability(figures: Mapping[str, Any], name: str) -> str:
    """Return accuracy against confidence, one panel for each measure of confidence."""
    confidences = figures["confidences"]
    with matplotlib.rc_context(STYLE):
        figure, panels = new_panels(2.5 * len(confidences), 2.7, len(confidences))
        for index, (axes, (label, found)) in enumerate(zip(panels, confidences.items(), strict=True)):
            bins = found["bins"]
            x, y = [b["predicted"] for b in bins], [b["accuracy"] for b in bins]
            errors = [[b["accuracy"] - b["low"] for b in bins], [b["high"] - b["accuracy"] for b in bins]]
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=_DASHED)
            axes.errorbar(x, y, yerr=errors, fmt="o", color=color(index), markersize=3.5, elinewidth=0.9)
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel(label)
            axes.set_title(f"calibration error {found['calibration_error']:.3f}")
        panels[0].set_ylabel("share right")
        return to_svg(figure, name, "Share of right answers by confidence")


def risk_coverage(figures: Mapping[str, Any], name: str) -> str:
    """Return the share of wrong answers by the share of prompts answered, one line for each measure of confidence."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.4, 3.2)
        for index, (label, found) in enumerate(figures["confidences"].items()):
            area = f"{label} (area {found['area']:.3f})"
            axes.plot(found["coverage"], found["risk"], color=color(index), linewidth=1.4, label=area)
        axes.axhline(figures["max_risk"], color=INK, linewidth=0.8, linestyle=_DASHED, label="most that is allowed")
        axes.set_xlim(0, 1.01)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share of prompts answered, the surest first")
        axes.set_ylabel("share wrong among them")
        figure.legend(loc="outside upper left", ncols=2, fontsize=8, handlelength=1.8)
        return to_svg(figure, name, "Share of wrong answers by share of prompts answered")
