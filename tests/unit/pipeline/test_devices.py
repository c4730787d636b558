"""GPUs are shared out among the stages that run at once: each sees its own, by the names that it was given."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.local.devices import Devices
from posttrain.pipeline.local.launch import Command, LocalLauncher, local_launcher, visible_gpus
from posttrain.pipeline.local.scheduler import Scheduler, State
from posttrain.pipeline.runs.resolve import Resolver
from posttrain.pipeline.watch.progress import Display
from posttrain.pipeline.watch.stopping import StopRequests

pytestmark = pytest.mark.timeout(120)
"""A scheduler whose GPUs never come back waits for ever."""
STAND_IN = """
import json, os, sys, time
from pathlib import Path
from posttrain.stage.artifact import Manifest, commit
from posttrain.stage.outcome import Outcome
from posttrain.stage.spec import StageSpec
spec, peers = StageSpec.read(Path(sys.argv[1])), int(sys.argv[2])
seen = Path(spec.output).parent.parent / "seen"
seen.mkdir(exist_ok=True)
began = time.monotonic()
(seen / f"{spec.stage}.began").touch()
while len(list(seen.glob("*.began"))) < peers and time.monotonic() < began + 60:
    time.sleep(0.01)
temporary = Path(spec.output).with_name(f".{spec.stage}")
temporary.mkdir(parents=True)
(temporary / "file").write_text(spec.stage)
(seen / f"{spec.stage}.json").write_text(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], began, time.monotonic()]))
commit(temporary, Path(spec.output), Manifest(
    kind="model", stage=spec.stage, run=spec.run, key=spec.key, digest="", files={}, parents=spec.parents,
    config=spec.config, code_digest="", seed=0, metrics={}, headline="", tokens=0, wall_seconds=0.0,
    created="2026-01-01T00:00:00Z", packages={}, hardware={}, licenses=[], facts={}))
Outcome(0).write(Path(spec.outcome))
"""
"""What takes the place of a stage that computes: it waits for as many others as are to run beside it."""
STAGES = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
stages:
  base: { run: train.base, with: { architecture: {} } }
  tokens: { run: data.tokenize, inputs: { model: base, data: rows } }
  rows: { run: data.curate, with: { record_type: demonstration, sources: [{ name: a, path: rows.jsonl }] } }
"""


@dataclasses.dataclass(frozen=True)
class StandingIn(LocalLauncher):
    """This machine's launcher, that starts the stand-in with the environment of the stage."""

    peers: int = 0

    def command(self, stage: Stage, arguments: list[str], lent: Sequence[str] = (), port: int | None = None) -> Command:
        peers = self.peers if stage.on_device else 0
        environment = super().command(stage, arguments, lent, port).environment
        return Command([sys.executable, "-c", STAND_IN, arguments[-1], str(peers)], environment)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    visible_gpus.cache_clear()
    yield
    visible_gpus.cache_clear()


def run(tmp_path: Path, names: str, peers: int, trained: int, *overrides: str) -> dict[str, tuple[str, float, float]]:
    """Run stages that train side by side on a machine with such GPUs; return what each saw, and from when to when."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    node = "  sft%d: { run: train.sft, inputs: { model: base, data: tokens }, seed: %d }\n"
    own = "".join(node % (number, number) for number in range(trained))
    (tmp_path / "recipe" / "wide.yaml").write_text(STAGES.replace("rows.jsonl", str(tmp_path / "rows.jsonl")) + own)
    point = prepare(compose_config(["recipe=wide", f"root={tmp_path / 'outputs'}", *overrides], tmp_path))
    found = local_launcher(point.config, point.stages)
    assert found.gpus == tuple(names.split(","))
    launcher = StandingIn(**vars(found), peers=peers + 3)  # those before them began too
    resolver = Resolver(point.config, point.run, launcher.distributed)
    with Display(Console(quiet=True)) as display:
        point.run.open(point.config, point.stages)
        scheduler = Scheduler(
            point.stages, resolver, point.run, launcher, point.config.launcher, display, StopRequests()
        )
        scheduler.run()
    assert {task.state for task in scheduler.tasks.values()} == {State.DONE}
    seen = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "outputs" / "seen").glob("sft*.json")}
    return {name: (devices, began, ended) for name, (devices, began, ended) in seen.items()}


def overlapping(seen: dict[str, tuple[str, float, float]]) -> list[set[str]]:
    """Return the GPUs of every two stages that ran at once."""
    pairs = [(a, b) for a in seen.values() for b in seen.values() if a < b]
    return [{*a[0].split(","), *b[0].split(",")} for a, b in pairs if a[1] < b[2] and b[1] < a[2]]


def test_each_of_two_stages_has_its_own_gpu_and_the_third_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "GPU-0aa1,MIG-77f0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    seen = run(tmp_path, names, 2, 3, "launcher.max_parallel=4")
    assert {devices for devices, *_ in seen.values()} == {*names.split(",")}, "one each, as they are called"
    assert overlapping(seen), "they ran at once"
    assert all(len(both) == 2 for both in overlapping(seen)), "never two on one GPU"


def test_a_stage_of_two_processes_has_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0,2")
    seen = run(tmp_path, "3,1,0,2", 2, 2, "launcher.max_parallel=4", "distributed=ddp", "distributed.num_processes=2")
    assert sorted(devices for devices, *_ in seen.values()) == ["0,2", "3,1"]
    assert [len(both) for both in overlapping(seen)] == [4]


def test_gpus_are_shared_only_where_more_stages_than_gpus_are_asked_for() -> None:
    alone = Devices(["0", "1"])
    assert [alone.lend(1), alone.lend(1), alone.has(1)] == [["0"], ["1"], False]
    alone.take_back(["0"])
    assert alone.has(1) and not alone.has(2)
    shared = Devices(["0", "1"], stages_each=2)
    assert [shared.lend(1) for _ in range(4)] == [["0"], ["1"], ["0"], ["1"]]
    assert not shared.has(1)


def test_a_stage_of_the_cpu_takes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    point = prepare(compose_config(["recipe=smoke"]))
    launcher = local_launcher(point.config, point.stages)
    of = {stage.name: launcher.devices_of(stage) for stage in point.stages}
    assert (of["sources"], of["sft"], of["evaluate_sft"], of["report"]) == (0, 1, 1, 0)
