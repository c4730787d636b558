"""The page of a run and the parts of it that change, as HTML."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from posttrain.evaluate.page import templates
from posttrain.evaluate.page.figures import plots
from posttrain.evaluate.page.figures.plots import Curve
from posttrain.pipeline.page.view import RunView, StageView

FIGURES = 256
"""Figures that are kept, so that only what has changed is drawn."""


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Return the templates: the report's, whose style they take, and those of this folder."""
    environment = templates.page_environment()
    folders = [Path(__file__).parent, Path(templates.__file__).parent]
    environment.loader = FileSystemLoader(folders)
    return environment


def page(run: RunView, chosen: str) -> str:
    """Return the whole page of a run, with one stage's logs; ``chosen`` is the stage that was asked for, or empty."""
    return _environment().get_template("watch.html.j2").render(run=run, chosen=chosen)


def state(run: RunView, shown: str) -> str:
    """Return the part that says how far every stage is."""
    return _environment().get_template("state.html.j2").render(run=run, shown=shown)


def stage(view: StageView) -> str:
    """Return the part that shows what one stage logs."""
    figures = [
        Markup(_figure(panel.title, panel.y_label, tuple(map(_frozen, lines)), f"curve{index}"))
        for index, (panel, lines) in enumerate(view.panels)
    ]
    return _environment().get_template("stage.html.j2").render(stage=view, figures=figures)


def _frozen(line: Curve) -> Curve:
    label, steps, values = line
    return label, tuple(steps), tuple(values)


@lru_cache(maxsize=FIGURES)
def _figure(title: str, y_label: str, lines: tuple[Curve, ...], name: str) -> str:
    return plots.curves(title, y_label, lines, name)
