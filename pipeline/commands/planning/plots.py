"""`--plot FILE`: memory by part beside cost against size, as a picture that any browser shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.plan.cards import Card
from posttrain.plan.config.questions import ModelQuestion, PretrainQuestion, TrainQuestion
from posttrain.plan.figure import Figure
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.model import ModelShape, count_active
from posttrain.plan.page import count
from posttrain.plan.pretraining import LAWS, pretraining_figures
from posttrain.plan.serving import serving_figures
from posttrain.plan.training import engines_of, estimated, training_figures
from posttrain.plan.ways import HEADROOM
from posttrain.plan.work import Machine, StagePlan
from posttrain.stage.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB, GIB = 1 << 20, 1 << 30
FAR = 5.0
"""A limit beyond so many times the longest bar is not drawn: nothing is near it."""
APART = 2.2
"""Sizes of models whose names are shown differ by this factor at least."""
SUFFIXES = (".svg", ".html")


@dataclasses.dataclass(frozen=True)
class Bar:
    """Memory of one stage, engine or model."""

    label: str
    parts: Mapping[str, float]
    """Part → bytes."""
    limit: float
    """Bytes that may be filled."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What models cost, by their size."""

    title: str
    of_known: Sequence[tuple[str, float, float]]
    """Name, active parameters, dollars: of models to compare with."""
    asked: Sequence[tuple[str, float, float]]


def require_plot_file(path: Path) -> None:
    """Raise UsageError for a file that no picture can be written to."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: a picture is {' or '.join(SUFFIXES)}; give plan.svg")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: no folder {path.parent}; make it first")


def plot_pipeline(plans: Sequence[StagePlan], machines: Mapping[str, Machine], path: Path) -> None:
    """Draw the memory of training stages, and what the pipeline would cost with other base models."""
    bars = [Bar(plan.work.name, plan.memory.at_peak(), plan.limit) for plan in plans if plan.memory is not None]
    shapes = {plan.work.shape for plan in plans}
    known = [plan for plan in plans if plan.seconds is not None]
    if len(shapes) != 1 or not known:
        _write(path, bars, Costs("no costs: rows are not known, or base models differ", (), ()))
        return
    (own,) = shapes

    def cost(shape: ModelShape) -> float:
        hours = 0.0
        for plan in known:
            machine, processes = machines[plan.work.name], plan.work.distributed.num_processes
            seconds = sum(
                dataclasses.replace(part, shape=shape).seconds(
                    machine.card, processes, machine.utilisation.mfu.expected, machine.utilisation.mbu.expected,
                    plan.work.tf32,
                )
                for part in plan.work.passes
            )  # fmt: skip
            hours += processes * seconds / 3600 * machine.price
        return hours

    title = "cost of the pipeline with other base models, $"
    _write(path, bars, Costs(title, _of_known(cost), [("this one", count_active(own), cost(own))]))


def plot_training(asked: TrainQuestion, shape: ModelShape, card: Card, path: Path) -> None:
    """Draw the memory under each engine, and what the same tokens cost with other models."""
    bars = [
        Bar(engine, estimated(shape, asked, engine).at_peak(), HEADROOM * card.memory) for engine in engines_of(asked)
    ]
    told = dataclasses.replace(asked, tokens=asked.tokens or 1e9)
    engine = engines_of(asked)[-1]

    def cost(other: ModelShape) -> float:
        return _value(training_figures(other, told, engine, card), "cost")

    title = f"cost of {count(told.tokens or 0)} tokens under {engine}, $"
    _write(path, bars, Costs(title, _of_known(cost), [(asked.model, count_active(shape), cost(shape))]))


def plot_serving(asked: ModelQuestion, shapes: Mapping[str, ModelShape], card: Card, path: Path) -> None:
    """Draw weights and the cache of the batch, and what a million tokens cost with other models."""
    limit = asked.cards * card.memory * asked.memory_share

    def made(shape: ModelShape) -> list[Figure]:
        return serving_figures(shape, asked, card)

    bars = [
        Bar(
            name,
            {
                "weights": _value(made(shape), f"weights in {asked.dtype}", "weights in int4"),
                "cache": asked.batch * _value(made(shape), "cache a sequence"),
            },
            limit,
        )
        for name, shape in shapes.items()
    ]

    def cost(shape: ModelShape) -> float:
        return _value(made(shape), "cost of a million tokens")

    points = [(name, float(count_active(shape)), cost(shape)) for name, shape in shapes.items()]
    title = f"cost of a million tokens, batch of {asked.batch}, $"
    _write(path, bars, Costs(title, _of_known(cost), points))


def plot_pretraining(asked: PretrainQuestion, shape: ModelShape | None, card: Card, path: Path) -> None:
    """Draw the loss that a law expects of other sizes for the same FLOPs, and what 20 tokens a parameter cost."""
    from matplotlib import rc_context

    from posttrain.evaluate.page.figures.plots import STYLE, color, new_panels

    figures = pretraining_figures(asked, shape, card)
    budget = asked.budget or _value(figures, "FLOPs")
    law = LAWS[asked.law]
    best, _ = law.optimum(budget)
    sizes = [best * 10 ** (step / 20 - 1) for step in range(41)]
    price = card.price if asked.price is None else asked.price
    dollars = [120 * size * size / (card.flops * asked.mfu) / 3600 * price for size in sizes]
    with rc_context(STYLE):
        figure, (left, right) = new_panels(9.2, 3.4, 2)
        left.plot(sizes, [law.loss(size, budget / 6 / size) for size in sizes], color=color(0))
        left.plot([best], [law.loss(*law.optimum(budget))], "o", color=color(1))
        left.annotate(f"{count(best)} parameters", (best, law.loss(*law.optimum(budget))), (0, 18),
                      textcoords="offset points", ha="center")  # fmt: skip
        _logarithmic(left, "x")
        _logarithmic(right, "xy")
        left.set(xlabel="parameters", title=f"loss for {budget:.3g} FLOPs ({asked.law}), nats")
        right.plot(sizes, dollars, color=color(0))
        right.set(xlabel="parameters", title="cost of 20 tokens a parameter, $")
        name = next(item for item in figures if item.name.startswith("parameters")).value
        right.plot([name], [_value(figures, "cost")], "o", color=color(1), label="as asked")
        right.legend()
        _save(path, figure, "Loss and cost of pretraining by size")


def _of_known(cost: Callable[[ModelShape], float]) -> list[tuple[str, float, float]]:
    made = [(name.rpartition("/")[2], float(count_active(shape)), cost(shape)) for name, shape in KNOWN_SHAPES.items()]
    return sorted((point for point in made if point[2] > 0), key=lambda point: point[1])


def _value(figures: Sequence[Figure], *names: str) -> float:
    return next(item.value for item in figures if item.name in names)


def _write(path: Path, bars: Sequence[Bar], costs: Costs) -> None:
    from matplotlib import rc_context

    from posttrain.evaluate.page.figures.plots import STYLE, new_panels

    with rc_context(STYLE):
        figure, (left, right) = new_panels(10.4, max(3.4, 1.2 + 0.34 * len(bars)), 2)
        _draw_bars(left, bars)
        _draw_costs(right, costs)
        _save(path, figure, f"Memory by part; {costs.title}")


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    from posttrain.evaluate.page.figures.plots import INK, PALETTE, color
    from posttrain.plan.table import PARTS

    most = max((sum(bar.parts.values()) for bar in bars), default=1.0)
    name, unit = ("MiB", MIB) if most < GIB else ("GiB", GIB)
    for index, part in enumerate(PARTS):
        widths = [bar.parts.get(part, 0.0) / unit for bar in bars]
        if any(widths):
            starts = [sum(bar.parts.get(before, 0.0) for before in PARTS[:index]) / unit for bar in bars]
            pale = 0.45 if index >= len(PALETTE) else None
            axes.barh(range(len(bars)), widths, left=starts, height=0.7, color=color(index), label=part, alpha=pale)
    near = [(place, bar.limit / unit) for place, bar in enumerate(bars) if bar.limit < FAR * most]
    for place, limit in near:
        axes.plot([limit] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=1.6)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(title=f"memory by part at the peak, {name}{'; the stroke is what may be filled' if near else ''}")
    axes.legend(fontsize=8, handlelength=1, loc="best")


def _draw_costs(axes: Axes, costs: Costs) -> None:
    from posttrain.evaluate.page.figures.plots import INK, color

    axes.set(title=costs.title, xlabel="active parameters")
    if not costs.asked:
        return
    _logarithmic(axes, "xy")
    axes.plot([x for _, x, _ in costs.of_known], [y for *_, y in costs.of_known], ".", color=INK, alpha=0.45)
    last = 0.0
    for name, x, y in costs.of_known:
        beside = any(x / APART < own < x * APART and y / APART < paid < y * APART for _, own, paid in costs.asked)
        if x > APART * last and not beside:
            last = x
            axes.annotate(name, (x, y), (5, -9), textcoords="offset points", fontsize=6.5, alpha=0.8)
    for name, x, y in costs.asked:
        axes.plot([x], [y], "o", color=color(1))
        axes.annotate(name, (x, y), (-6, 5), textcoords="offset points", ha="right", color=color(1))


def _logarithmic(axes: Axes, which: str) -> None:
    """Make axes logarithmic, their numbers as people say them."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axis.set_minor_formatter(NullFormatter())


def _save(path: Path, figure: object, description: str) -> None:
    from posttrain.evaluate.page.figures.plots import to_svg

    svg = to_svg(figure, "plan", description)  # type: ignore[arg-type]
    if path.suffix == ".html":
        opening = '<!doctype html><html lang="en"><meta charset="utf-8"><title>posttrain plan</title>'
        style = (
            "<style>:root{color-scheme:light dark}body{margin:2em;font-family:sans-serif}svg{max-width:100%}</style>"
        )
        text = f"{opening}{style}<body>{svg}</body></html>\n"
    else:
        text = svg.replace("<svg", '<svg style="background:white;color:black;font-family:sans-serif"', 1) + "\n"
    path.write_text(text, encoding="utf-8")
