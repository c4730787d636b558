"""The arguments with which a stage is run by hand: inline, since a dry run writes no work order.

Its artifact lies beside those of the pipeline, which knows it by no key: <root>/by-hand/<run>/<stage>.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.runs.resolve import Made
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.schema import to_dict
from posttrain.stage.spec import Distributed


def arguments_of(stage: Stage, run: RunDirectory, made: dict[str, Made], seed: int, wanted: Distributed) -> list[str]:
    """Return a stage's inputs, output and knobs as ``key=value``; what is not made yet is to be made by hand before."""
    inputs = [
        f"inputs.{name}={made[parent].directory if parent in made else _place(run, parent)}"
        for name, parent in stage.inputs.items()
    ]
    own = [f"output={_place(run, stage.name)}", f"seed={seed}"]
    usual = Distributed(wanted.kind, wanted.num_processes)
    spread = {
        field.name: getattr(wanted, field.name)
        for field in dataclasses.fields(Distributed)
        if getattr(wanted, field.name) != getattr(usual, field.name)
    }
    if wanted.kind in ("deepspeed", "fsdp"):  # the others are what accelerate makes of its own options
        spread["kind"] = wanted.kind
    knobs = [f"{name}={_yaml(value)}" for name, value in _given(stage.config).items()]
    return [*inputs, *own, *(f"distributed.{name}={_yaml(value)}" for name, value in spread.items()), *knobs]


def _place(run: RunDirectory, stage: str) -> Path:
    return run.root / "by-hand" / run.name / stage


def _given(config: Any) -> dict[str, Any]:
    """Return the values of a configuration that are not its schema's defaults."""
    values = to_dict(config)
    fields = type(config).__pydantic_fields__
    return {
        info.alias or name: values[info.alias or name]
        for name, info in fields.items()
        if info.is_required() or getattr(config, name) != info.get_default(call_default_factory=True)
    }


def _yaml(value: Any) -> str:
    """Return a text that reads as a value: itself, as JSON, or where YAML's numbers differ from JSON's, as YAML."""
    flow = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, sort_keys=False, allow_unicode=True)
    texts = [value] * isinstance(value, str) + [json.dumps(value, ensure_ascii=False)]
    return next((text for text in texts if _reads_as(text, value)), flow.removesuffix("\n...\n").rstrip("\n"))


def _reads_as(text: str, value: Any) -> bool:
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return bool(json.dumps(read, default=str) == json.dumps(value))
