"""Constraints by name and value, as a command line has them, and a sampler that holds every response to one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.sample.sampling import Accept, Prompts, Sample, SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.constraint import ConstraintFactory, GeneratesUnder
from posttrain.sample.structured.grammar import (
    Grammar,
    choice_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
    shipped_grammar,
)
from posttrain.sample.structured.json_schema import Validator, enforceable
from posttrain.stage.errors import UsageError


def read_constraint(kind: str, value: str) -> str | Mapping[str, Any]:
    """Return what a ``schema`` or ``grammar`` stands for, read from its file, or else the value as it is.

    Raises UsageError where there is no such file, or no schema that a grammar can hold to: that takes no model.
    """
    if kind in ("regex", "choices") or (kind == "grammar" and not Path(value).suffix):
        return value
    text = _text(kind, value)
    return text if kind == "grammar" else enforceable(_schema(text, value)).schema


def read_schema(value: str) -> dict[str, Any]:
    """Return the JSON Schema of a file, whether or not a grammar can hold to it.

    Raises UsageError where there is no such file, or nothing can be checked by what it holds.
    """
    schema = _schema(_text("schema", value), value)
    Validator(schema)
    return schema


def _text(kind: str, value: str) -> str:
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--{kind}: {value}: {error}; give a file") from None


def _schema(text: str, source: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--schema: {source}: not JSON ({error}); give a JSON Schema") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--schema: {source}: not an object; give a JSON Schema")
    return schema


def constraint_of(vocabulary: Vocabulary, kind: str, value: str | Mapping[str, Any]) -> Grammar:
    """Return the grammar of a ``schema``, a ``regex``, ``choices`` (with commas between them), or a ``grammar``.

    The last is ``sql``, ``yaml``, or the text of one in Lark's syntax. Raises UsageError where it is wrong.
    """
    if not isinstance(value, str):
        return json_schema_grammar(vocabulary, value)
    if kind == "regex":
        return regex_grammar(vocabulary, value)
    if kind == "choices":
        return choice_grammar(vocabulary, [choice.strip() for choice in value.split(",")])
    return lark_grammar(vocabulary, value) if "\n" in value else shipped_grammar(vocabulary, value)


class Constrained:
    """A sampler whose samples are all held to one constraint."""

    def __init__(self, sampler: GeneratesUnder, constraint: ConstraintFactory) -> None:
        self._sampler, self._constraint = sampler, constraint

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        """Return the samples of each prompt."""
        return self._sampler.generate(prompts, params, constraints=[self._constraint] * len(prompts), accept=accept)
