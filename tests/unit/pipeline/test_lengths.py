"""Lengths that cannot work are found before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.graph.lengths import check_lengths
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build


def check(base: dict[str, Any], knobs: dict[str, Any], with_sft: dict[str, Any] | None = None) -> None:
    stages = {
        "base": {"run": "train.base", "with": base},
        "rows": {
            "run": "data.curate",
            "with": {"record_type": "demonstration", "sources": [{"name": "mine", "path": "rows.jsonl"}]},
        },
        "tokens": {"run": "data.tokenize", "inputs": {"data": "rows", "model": "base"}},
        "sft": {"run": "train.sft", "inputs": {"model": "base", "data": "tokens"}, "with": with_sft or {}},
        "evaluate": {"run": "evaluate.policy", "inputs": {"model": "sft", "data": "tokens"}},
        "report": {"run": "evaluate.report", "inputs": {"sft": "sft"}},
    }
    check_lengths(build_graph(build(PipelineConfig, {"stages": stages, **knobs}, "")))


def folder(root: Path, config: Any) -> dict[str, Any]:
    (root / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return {"path": str(root)}


@pytest.mark.parametrize(
    "config",
    [{"max_position_embeddings": 512}, {"n_positions": 512}, {"text_config": {"max_position_embeddings": 512}}],
)
def test_no_more_tokens_are_asked_for_than_the_model_takes(tmp_path: Path, config: dict[str, Any]) -> None:
    base = folder(tmp_path, config)
    fits = {"data": {"tokenize": {"max_length": 512}}, "evaluate": {"policy": {"max_new_tokens": 511}}}
    check(base, fits)
    too_long = {"data": {"tokenize": {"max_length": 513}}, "evaluate": {"policy": {"max_new_tokens": 512}}}
    with pytest.raises(UsageError) as caught:
        check(base, too_long)
    assert str(caught.value).splitlines() == [
        "data.tokenize.max_length=513: the model takes at most 512 tokens; set data.tokenize.max_length=512",
        "evaluate.policy.max_new_tokens=512: the model takes at most 512 tokens, the prompt's included; lower it",
    ]


def test_an_architecture_of_ones_own_says_what_it_takes() -> None:
    knobs = {"data": {"tokenize": {"max_length": 65}}}
    with pytest.raises(UsageError, match="at most 64 tokens"):
        check(
            {"architecture": {"max_position_embeddings": 64}}, knobs | {"evaluate": {"policy": {"max_new_tokens": 9}}}
        )


@pytest.mark.parametrize("config", ["{", "[]", {}])
def test_what_cannot_be_known_is_left_to_the_stages(tmp_path: Path, config: Any) -> None:
    check(folder(tmp_path, config), {"data": {"tokenize": {"max_length": 10**6}}})
    check({"hub_name": "some/model"}, {"data": {"tokenize": {"max_length": 10**6}}})


def test_rows_must_fit_a_pack(tmp_path: Path) -> None:
    base = folder(tmp_path, {"max_position_embeddings": 4096})
    check(base, {"data": {"tokenize": {"max_length": 2048}}}, {"packing": True, "pack_length": 2048})
    check(base, {"data": {"tokenize": {"max_length": 2048}}})
    check(base, {}, {"packing": True})
    with pytest.raises(UsageError) as caught:
        check(base, {"data": {"tokenize": {"max_length": 2048}}}, {"packing": True})
    assert str(caught.value) == (
        "train.sft.pack_length=1024: data.tokenize.max_length=2048 lets rows be longer than a pack; set "
        "train.sft.pack_length=2048, or lower the other"
    )
