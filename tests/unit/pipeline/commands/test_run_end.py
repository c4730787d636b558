"""The end of a run: where its models lie, and the lines that take one out or ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_artifacts import commit_artifact

from posttrain.pipeline.commands.run import _model_lines
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.local.scheduler import Task
from posttrain.pipeline.runs.resolve import Made
from posttrain.stage.artifact import read_manifest


def made(root: Path, stage: str, kind: str, **facts: Any) -> Made:
    directory = root / "artifacts" / f"{stage}-{0:016x}"
    directory.mkdir(parents=True)
    (directory / "weights").write_text(stage)
    commit_artifact(directory, kind, stage, **facts)
    return Made(directory, read_manifest(directory))


def test_the_last_models_of_a_chain_are_named_with_what_to_do_with_them(tmp_path: Path) -> None:
    tasks = [Task(stage) for stage in build_graph(compose_config(["recipe=smoke"]))]
    root = tmp_path / "out put"
    kinds = {"base": "model", "sft": "model", "reward": "reward_model", "dpo": "model", "ppo": "model"}
    lines = _model_lines({name: made(root, name, kind) for name, kind in kinds.items()}, tasks)
    assert [line.partition(":")[2].strip() for line in lines if line.startswith("model")] == [
        f"{root}/artifacts/dpo-0000000000000000",
        f"{root}/artifacts/ppo-0000000000000000",
    ]
    assert f"  posttrain export dpo-0000000000000000 dpo-model --root '{root}'" in lines
    assert f"  posttrain generate ppo-0000000000000000 --root '{root}'" in lines


def test_a_run_that_ended_early_names_the_model_that_it_has(tmp_path: Path) -> None:
    tasks = [Task(stage) for stage in build_graph(compose_config(["recipe=smoke"]))]
    lines = _model_lines({name: made(tmp_path, name, "model") for name in ("base", "sft")}, tasks)
    assert [line for line in lines if line.startswith("model")] == [f"model: {tmp_path}/artifacts/sft-0000000000000000"]
