"""What a dry run prints is the work order that the pipeline would have written, inline."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.local.by_hand import _yaml, arguments_of
from posttrain.pipeline.local.launch import local_launcher, visible_gpus
from posttrain.stage.artifact import Manifest, commit
from posttrain.stage.by_hand import spec_by_hand
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import to_dict


@pytest.mark.parametrize(
    "value",
    [
        1,
        1e-5,
        1.0,
        True,
        None,
        "no",
        "1e-5",
        "",
        "a: b",
        "plain",
        "two\nlines",
        [1e-5, "x"],
        {"a": {"b": [1.5, None]}},
        "é",
    ],
)
def test_every_value_reads_as_itself(value: object) -> None:
    read = yaml.safe_load(_yaml(value))
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("distribution", ["single", "zero2", "fsdp2"])
def test_what_is_printed_is_the_whole_work_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    visible_gpus.cache_clear()
    spread = [f"distributed={distribution}", "distributed.timeout_seconds=60"]
    config = compose_config(["recipe=smoke", "seed=7", f"root={tmp_path}", *spread])
    point = prepare(config)
    launcher = local_launcher(config, point.stages)
    for stage in point.stages:
        asked = launcher.distributed(stage)
        arguments = arguments_of(stage, point.run, {}, config.seed, asked)
        spec = spec_by_hand(arguments, stage.type.schema(), stage.type.module)
        assert (spec.config, spec.seed) == (to_dict(stage.config), 7), stage.name
        assert spec.distributed.timeout_seconds == 60
        assert (spec.distributed.deepspeed, spec.distributed.fsdp) == (asked.deepspeed, asked.fsdp)
        assert set(spec.inputs) == set(stage.inputs)
        make(Path(spec.output), stage.type.kind)  # as those after it expect it


def make(directory: Path, kind: str) -> None:
    """Commit an artifact that holds nothing of interest."""
    temporary = directory.with_name(f".{directory.name}")
    temporary.mkdir(parents=True)
    (temporary / "file").write_text(directory.name)
    commit(
        temporary,
        directory,
        Manifest(kind, directory.name, "", "", "", {}, {}, {}, "", 0, {}, "", 0, 0.0, "", {}, {}, [], {}),
    )


def test_an_unknown_distribution_is_one_line() -> None:
    schema = compose_config(["recipe=smoke"])
    assert schema
    with pytest.raises(UsageError, match=r"^distributed\.kinds: unknown key; did you mean \'kind\'\?; known: kind, "):
        spec_by_hand(["output=x", "distributed.kinds=ddp"], type(schema.sampling), "posttrain.data.demo")
