"""`posttrain plan model`, `plan train` and `plan pretrain`: figures about a model, from knobs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from posttrain.pipeline.commands.planning.plots import (
    plot_pretraining,
    plot_serving,
    plot_training,
    require_plot_file,
)
from posttrain.pipeline.graph.knobs import knobs_of
from posttrain.plan.cards import card_named
from posttrain.plan.config.questions import ModelQuestion, PretrainQuestion, TrainQuestion
from posttrain.plan.figure import Figure
from posttrain.plan.known import shape_named
from posttrain.plan.page import print_figures, wide_console
from posttrain.plan.pretraining import pretraining_figures
from posttrain.plan.serving import require_split, serving_figures
from posttrain.plan.training import engines_of, training_figures
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.schema import build


def print_model_plan(words: Sequence[str], *, explain: bool, as_json: bool, plot: Path | None = None) -> int:
    """Print what models need to answer, side by side; return the exit code."""
    _check(plot)
    asked = build(ModelQuestion, _knobs(words, "plan model"), "")
    card = card_named(asked.card, "card")
    names = asked.model.split(",") if isinstance(asked.model, str) else asked.model
    shapes = {name: shape_named(name.strip(), "model") for name in names}
    for name, shape in shapes.items():
        require_split(shape, asked.cards, "cards", name)
    columns = {name: serving_figures(shape, asked, card) for name, shape in shapes.items()}
    print_figures(columns, explain=explain, as_json=as_json)
    if plot is not None:
        plot_serving(asked, shapes, card, plot)
    return EXIT_DONE


def print_training_plan(words: Sequence[str], *, explain: bool, as_json: bool, plot: Path | None = None) -> int:
    """Print what it takes to train a model, under one engine or under each; return the exit code."""
    _check(plot)
    asked = build(TrainQuestion, _knobs(words, "plan train"), "")
    card, shape = card_named(asked.card, "card"), shape_named(asked.model, "model")
    require_split(shape, asked.tensor, "tensor", asked.model)
    columns: dict[str, list[Figure]] = {}
    for engine in engines_of(asked):
        columns[engine] = training_figures(shape, asked, engine, card)
    print_figures(columns, explain=explain, as_json=as_json)
    if plot is not None:
        plot_training(asked, shape, card, plot)
    return EXIT_DONE


def print_pretraining_plan(words: Sequence[str], *, explain: bool, as_json: bool, plot: Path | None = None) -> int:
    """Print what pretraining costs, or what a budget buys; return the exit code."""
    _check(plot)
    asked = build(PretrainQuestion, _knobs(words, "plan pretrain"), "")
    shape = shape_named(asked.model, "model") if asked.model is not None else None
    card = card_named(asked.card, "card")
    figures = pretraining_figures(asked, shape, card)
    name = f"{asked.cards} × {asked.card}"
    print_figures({name: figures}, explain=explain, as_json=as_json)
    if plot is not None:
        plot_pretraining(asked, shape, card, plot)
    return EXIT_DONE


def print_knobs(question: str) -> int:
    """Print the knobs of a question, one a line, and return the exit code."""
    schemas = {"model": ModelQuestion, "train": TrainQuestion, "pretrain": PretrainQuestion}
    table = Table(title=f"posttrain plan {question} KEY=VALUE …")
    for header in ("knob", "default", "values", "what it is"):
        table.add_column(header, no_wrap=header == "knob")
    for knob in knobs_of(schemas[question]):
        table.add_row(knob.key, knob.default, escape(f"{knob.kind} {knob.range}".strip()), escape(knob.words))
    wide_console().print(table)
    return EXIT_DONE


def _check(plot: Path | None) -> None:
    if plot is not None:
        require_plot_file(plot)


def _knobs(words: Sequence[str], command: str) -> dict[str, Any]:
    """Return the values of ``key=value`` words, ``key.inner=value`` among them."""
    knobs: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{command}: {word!r} is not KEY=VALUE; write it as model=Qwen/Qwen3-8B")
        outer, dot, inner = key.partition(".")
        value = _number_or(text)
        if dot:
            knobs.setdefault(outer, {})[inner] = value
        else:
            knobs[key] = value
    return knobs


def _number_or(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
