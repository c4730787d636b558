"""The reference of knobs: made from the schemas, up to date, whole, and right about its examples."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from posttrain.pipeline.graph.knobs import all_knobs
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import check_given

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_made_from_data_are_up_to_date(reference: ModuleType) -> None:
    stale = [page.name for page, text in reference.pages().items() if page.read_text(encoding="utf-8") != text]
    assert stale == [], "run scripts/reference.py"


def test_every_knob_of_every_stage_has_a_row_with_words_inherited_ones_too() -> None:
    text = (ROOT / "docs" / "knobs.md").read_text(encoding="utf-8")
    sections = {title.strip("`"): body for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)}
    for run, stage_type in STAGE_TYPES.items():
        for name, info in stage_type.schema().__pydantic_fields__.items():
            assert f"| `{info.alias or name}" in sections[run], f"{run}.{name}"
    assert [knob.key for knob in all_knobs() if not knob.words or knob.words == "None"] == []


def test_examples_are_values_that_the_schema_takes() -> None:
    wrong = []
    for knob in all_knobs():
        run, value = ".".join(knob.key.split(".")[:2]), knob.example.partition("=")[2]
        if run not in STAGE_TYPES or "…" in value or ".0." in knob.key or "NAME" in knob.key:
            continue
        node = yaml.safe_load(value)
        for part in reversed(knob.key.split(".")[2:]):
            node = {part: node}
        try:
            check_given(STAGE_TYPES[run].schema(), node, run)
        except UsageError as error:
            wrong.append(str(error))
    assert wrong == []
