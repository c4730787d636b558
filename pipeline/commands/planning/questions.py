"""`posttrain plan model` and `posttrain plan pretrain`: figures about a model, from knobs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from posttrain.plan.cards import card_named
from posttrain.plan.config.questions import ModelQuestion, PretrainQuestion
from posttrain.plan.known import shape_named
from posttrain.plan.page import print_figures
from posttrain.plan.pretraining import pretraining_figures
from posttrain.plan.serving import serving_figures
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.schema import build


def print_model_plan(words: Sequence[str], *, explain: bool, as_json: bool) -> int:
    """Print what models need to answer, side by side; return the exit code."""
    asked = build(ModelQuestion, _knobs(words, "plan model"), "")
    card = card_named(asked.card, "card")
    names = asked.model.split(",") if isinstance(asked.model, str) else asked.model
    columns = {name: serving_figures(shape_named(name.strip(), "model"), asked, card) for name in names}
    print_figures(columns, explain=explain, as_json=as_json)
    return EXIT_DONE


def print_pretraining_plan(words: Sequence[str], *, explain: bool, as_json: bool) -> int:
    """Print what pretraining costs, or what a budget buys; return the exit code."""
    asked = build(PretrainQuestion, _knobs(words, "plan pretrain"), "")
    shape = shape_named(asked.model, "model") if asked.model is not None else None
    figures = pretraining_figures(asked, shape, card_named(asked.card, "card"))
    name = f"{asked.cards} × {asked.card}"
    print_figures({name: figures}, explain=explain, as_json=as_json)
    return EXIT_DONE


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
