"""Configuration schemas: every knob says what it does, also where it is inherited."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.knobs import words_of
from posttrain.pipeline.graph.registry import STAGE_TYPES

SCHEMAS = {"pipeline": PipelineConfig, **{run: stage_type.schema() for run, stage_type in STAGE_TYPES.items()}}


def schemas_in(annotation: Any) -> list[Any]:
    """Return the schemas that an annotation names, through lists, dictionaries and optional values."""
    if dataclasses.is_dataclass(annotation):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in schemas_in(part)]


def knobs_of(schema: Any, path: str = "") -> dict[str, Any]:
    """Return what every knob of a schema and of the schemas below it says of itself, by its dotted path."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    words = words_of(schema)
    for name in schema.__pydantic_fields__:
        below = f"{path}.{name}".lstrip(".")
        found[below] = words.get(name, "")
        for nested in schemas_in(hints[name]):
            found |= knobs_of(nested, below)
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_knob_says_at_run_time_what_it_does(name: str) -> None:
    silent = [path for path, words in knobs_of(SCHEMAS[name]).items() if not words]
    assert silent == []


def test_an_inherited_knob_keeps_its_own_words() -> None:
    knobs = knobs_of(SCHEMAS["train.dpo"])
    assert knobs["epochs"] == "Passes over the rows."
    assert knobs["optimizer.learning_rate"] == "Highest rate of the schedule."
    assert knobs["beta"].startswith("How strongly the policy is held")
