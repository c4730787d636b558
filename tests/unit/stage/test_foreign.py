"""Names of other tools: each is answered with a knob of ours that exists, where it was typed and where it was not."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from posttrain.pipeline.config.overrides import group_options
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.errors import UsageError
from posttrain.stage.foreign import FOREIGN, TOOLS, Foreign
from posttrain.stage.schema import build

SCHEMAS = {name: stage.schema for name, stage in STAGE_TYPES.items()} | {"sampling": lambda: SamplingConfig}
STAGES: dict[str, dict[str, set[str]]] = {}
for _row in FOREIGN:
    for _stage in _row.stages:
        for _name in (name for names in _row.names.values() for name in names):
            STAGES.setdefault(_stage, {}).setdefault(_name, set()).add(_row.knob)


def field(schema: Any, path: str) -> Any:
    """Return the annotation of a knob at a dotted path of a schema; None where there is no such knob."""
    for part in path.split("."):
        schema = next((part for part in typing.get_args(schema) if part is not type(None)), schema)
        if not hasattr(schema, "__pydantic_fields__") or part not in schema.__pydantic_fields__:
            return None
        schema = typing.get_type_hints(schema)[part]
    return schema


def nested(name: str) -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` for ``a.b``."""
    first, _, rest = name.partition(".")
    return {first: nested(rest) if rest else 1}


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: f"{row.knob}{row.value and '='}{row.value}")
def test_the_knob_exists_in_every_stage_that_it_is_claimed_for(row: Foreign) -> None:
    for stage in row.stages:
        assert field(SCHEMAS[stage](), row.knob) is not None, stage
    if not row.stages and row.knob in (options := group_options(None)):
        assert row.value in options[row.knob]
    elif not row.stages:
        assert field(PipelineConfig, row.knob) is not None or row.knob.startswith("paths.")


def test_at_least_forty_names_of_every_kind_of_tool_are_known() -> None:
    assert len({name for row in FOREIGN for names in row.names.values() for name in names}) >= 150
    assert {tool for row in FOREIGN for tool in row.names} == {*TOOLS}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_name_of_another_tool_below_a_stage_is_answered_with_a_key_of_that_stage(stage: str) -> None:
    schema = SCHEMAS[stage]()
    for name, knobs in STAGES[stage].items():
        if field(schema, name) is not None:
            continue  # the same name here
        with pytest.raises(UsageError) as caught:
            build(schema, nested(name), stage)
        (line,) = (line for line in str(caught.value).splitlines() if f" is {stage}." in line)
        assert any(f" is {stage}.{knob}" in line for knob in knobs), line


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        (
            "learning_rate",
            "is train.STAGE.optimizer.learning_rate for a STAGE of sft, reward",
        ),
        ("bf16", "is train.STAGE.dtype=bfloat16 for a STAGE of sft"),
        ("actor_rollout_ref.actor.optim.lr", "actor_rollout_ref.actor.optim.lr (verl) is train.STAGE.optimizer"),
        ("algorithm.kl_ctrl.kl_coef", "is train.ppo.kl.coef here"),
        ("max_seq_length", "is data.tokenize.max_length here"),
        ("output_dir", "is root here"),
        ("load_in_4bit", "is adapter=qlora here"),
        ("data.train_batch_size", "is train.STAGE.rollout_batch_size"),
    ],
)
def test_a_name_of_another_tool_at_the_root_says_where_it_belongs(key: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(PipelineConfig, {"stages": {"a": {"run": "data.demo"}}, **nested(key)}, "")
    assert hint in str(caught.value)


def test_a_knob_of_another_stage_type_is_named_with_that_type() -> None:
    with pytest.raises(UsageError, match=r"unknown key; kl_coef \(TRL\) is train\.ppo\.kl\.coef here$"):
        build(STAGE_TYPES["train.sft"].schema(), {"kl_coef": 0.1}, "train.sft")


def test_a_misspelt_knob_of_ours_is_still_met_with_ours() -> None:
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        build(STAGE_TYPES["train.sft"].schema(), {"epoch": 1}, "train.sft")
