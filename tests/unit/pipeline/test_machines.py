"""Several machines without a scheduler of jobs: who is which, what they tell each other, and what follows a loss."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.pipeline import DistributedConfig
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.local.follower import Follower, follow
from posttrain.pipeline.local.launch import Command, LocalLauncher, local_launcher, visible_gpus
from posttrain.pipeline.local.leader import Leader, leading
from posttrain.pipeline.local.machines import Line, Place, place_of
from posttrain.pipeline.local.scheduler import Scheduler, State
from posttrain.pipeline.runs.resolve import Resolver
from posttrain.pipeline.runs.variants import Point
from posttrain.pipeline.slurm.script import SlurmLauncher
from posttrain.pipeline.watch.progress import Display
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.errors import UsageError
from posttrain.stage.ranks import free_port

pytestmark = pytest.mark.timeout(120)
RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
stages:
  rows: { run: data.curate, with: { record_type: demonstration, sources: [{ name: a, path: rows.jsonl }] } }
  base: { run: train.base, with: { architecture: {} } }
  tokens: { run: data.tokenize, inputs: { model: base, data: rows } }
  sft: { run: train.sft, inputs: { model: base, data: tokens } }
"""
STAND_IN = """
import json, os, sys, time
from pathlib import Path
from posttrain.stage.artifact import Manifest, commit
from posttrain.stage.outcome import Outcome
from posttrain.stage.spec import StageSpec
spec, machine, port, dies = StageSpec.read(Path(sys.argv[1])), *map(int, sys.argv[2:])
if spec.stage == "sft":
    met = Path(spec.output).parent.parent / "met"
    met.mkdir(exist_ok=True)
    (met / f"{machine}.json").write_text(json.dumps([port, os.environ["POSTTRAIN_HEARTBEAT"]]))
    while len(list(met.glob("*.json"))) < 2:
        time.sleep(0.01)
    if dies == machine:
        sys.exit(3)
    time.sleep(600 if dies >= 0 or machine else 0)
temporary = Path(spec.output).with_name(f".{spec.stage}")
temporary.mkdir(parents=True)
(temporary / "file").write_text(spec.stage)
commit(temporary, Path(spec.output), Manifest(
    kind="model", stage=spec.stage, run=spec.run, key=spec.key, digest="", files={}, parents=spec.parents,
    config=spec.config, code_digest="", seed=0, metrics={}, headline="", tokens=0, wall_seconds=0.0,
    created="2026-01-01T00:00:00Z", packages={}, hardware={}, licenses=[], facts={}))
Outcome(0).write(Path(spec.outcome))
"""
"""What takes the place of a machine's ranks: those of the second machine only end when they are told to."""


@dataclasses.dataclass(frozen=True)
class StandingIn(LocalLauncher):
    """A machine's launcher, that starts the stand-in with the environment of the stage."""

    dies: int = -1

    def command(self, stage: Stage, arguments: list[str], lent: Sequence[str] = (), port: int | None = None) -> Command:
        environment = super().command(stage, arguments, lent, port).environment
        told = [str(self.place.rank), str(port or 0), str(self.dies)]
        return Command([sys.executable, "-c", STAND_IN, arguments[-1], *told], environment)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    visible_gpus.cache_clear()
    yield
    visible_gpus.cache_clear()


def two_machines(tmp_path: Path, *overrides: str) -> Point:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "recipe" / "two.yaml").write_text(RECIPE.replace("rows.jsonl", str(tmp_path / "rows.jsonl")))
    given = ["recipe=two", f"root={tmp_path / 'outputs'}", "distributed=ddp", "distributed.num_machines=2", *overrides]
    return prepare(compose_config(given, tmp_path))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.01)


class Caller:
    """The other end of a leader's connection, played by hand."""

    def __init__(self, place: Place, **hello: object) -> None:
        self.line = Line(socket.create_connection((place.address, place.port)))
        self.line.send(**hello)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def hears(self, leader: Leader) -> dict[str, object]:
        heard: list[dict[str, object]] = []
        until(lambda: leader.missing() is None or heard.extend(self.line.receive()) or heard)
        return heard[0]


def test_a_machine_knows_its_place_by_knobs_or_by_the_variables_of_who_started_it() -> None:
    two = DistributedConfig(kind="ddp", num_machines=2)
    meets = {"MASTER_ADDR": "10.0.0.1"}
    assert place_of(two, {**meets, "NODE_RANK": "1", "RANK": "0"}) == Place(1, 2, "10.0.0.1", 29500)
    assert place_of(two, {**meets, "JOB_COMPLETION_INDEX": "1", "MASTER_PORT": "7"}) == Place(1, 2, "10.0.0.1", 7)
    given = DistributedConfig(kind="ddp", num_machines=2, machine_rank=0, main_address="first", main_port=8)
    assert place_of(given, {**meets, "NODE_RANK": "1", "MASTER_PORT": "7"}) == Place(0, 2, "first", 8)
    assert place_of(DistributedConfig(), {**meets, "RANK": "1", "WORLD_SIZE": "2"}).of == 1, (
        "a variable alone does nothing"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASTER_ADDR": "a"}, r"distributed\.machine_rank: missing, with distributed\.num_machines=2; give 0"),
        ({"NODE_RANK": "1"}, r"distributed\.main_address: missing; give where machine 0 is reached"),
        (
            {"NODE_RANK": "2", "MASTER_ADDR": "a"},
            r"distributed\.machine_rank: 2, but .*num_machines is 2; count from 0",
        ),
        ({"NODE_RANK": "one"}, r"NODE_RANK: 'one' is no whole number; give distributed\.machine_rank"),
    ],
)
def test_what_does_not_say_where_a_machine_stands_is_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place_of(DistributedConfig(kind="ddp", num_machines=2), environment)


def test_ranks_are_shared_out_evenly_and_meet_on_the_first_machine(tmp_path: Path) -> None:
    point = two_machines(tmp_path, "distributed.num_processes=6")
    launcher = dataclasses.replace(local_launcher(point.config, point.stages), place=Place(1, 2, "first", 8))
    stage = {stage.name: stage for stage in point.stages}
    assert launcher.distributed(stage["sft"]).num_processes == 6
    arguments = launcher.command(stage["sft"], ["--spec", "s"], port=4711).arguments
    wanted = {"num_processes": "6", "num_machines": "2", "machine_rank": "1", "main_process_ip": "first"}
    for name, value in {**wanted, "main_process_port": "4711"}.items():
        assert [*reversed(arguments)][[*reversed(arguments)].index(f"--{name}") - 1] == value, "the last one counts"
    assert "accelerate.commands.launch" not in launcher.command(stage["rows"], ["--spec", "s"]).arguments
    with pytest.raises(UsageError, match=r"num_processes=3 is no multiple of num_machines=2"):
        compose_config(["distributed=ddp", "distributed.num_machines=2", "distributed.num_processes=3"])
    with pytest.raises(
        UsageError, match=r"num_machines: 2, but Slurm starts the ranks; give launcher.slurm.train.nodes=2"
    ):
        SlurmLauncher(point.config).distributed(stage["sft"])


def test_every_machine_has_as_many_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    visible_gpus.cache_clear()
    point = two_machines(tmp_path)
    launcher = local_launcher(point.config, point.stages)
    (sft,) = [stage for stage in point.stages if stage.name == "sft"]
    assert (launcher.distributed(sft).num_processes, launcher.devices_of(sft)) == (6, 3)
    config = compose_config(
        ["recipe=demo", "distributed=ddp", "distributed.num_machines=2", "distributed.num_processes=8"]
    )
    with pytest.raises(UsageError, match=r"num_processes: 8, but there are 3 GPUs on each machine"):
        local_launcher(config, prepare(config).stages)


def test_a_stage_of_one_process_stays_on_the_first_machine_and_none_has_machines_of_its_own(tmp_path: Path) -> None:
    spread = {stage.name: stage.distributed.num_machines for stage in two_machines(tmp_path).stages}
    assert spread == {"rows": 1, "base": 1, "tokens": 1, "sft": 2}
    two = ["recipe=demo", "distributed=ddp", "distributed.num_machines=2"]
    own = {
        stage.name: stage.distributed
        for stage in prepare(compose_config([*two, "stages.dpo.distributed=zero3"])).stages
    }
    assert (own["dpo"].kind, own["dpo"].num_machines) == ("deepspeed", 2)
    alone = prepare(compose_config([*two, "stages.dpo.distributed=single"])).stages
    assert {stage.distributed.num_machines for stage in alone if stage.name == "dpo"} == {1}
    bad = compose_config([*two, "stages.dpo.distributed=zero3", "stages.dpo.distributed.machine_rank=1"])
    with pytest.raises(UsageError, match=r"stages\.dpo\.distributed\.machine_rank: all stages have the same"):
        prepare(bad)


def test_a_leader_takes_each_machine_once_and_none_of_another_command() -> None:
    place = Place(0, 2, "127.0.0.1", free_port())
    with leading(place, ["/runs/mine"]) as leader:
        assert (leader.missing(), leader.ready()) == ([1], False)
        for hello, why in (
            ({"machine": 5, "runs": ["/runs/mine"]}, "machine 5 is none of 1 to 1"),
            ({"machine": 1, "runs": ["/runs/other"]}, "machine 0 runs /runs/mine, machine 1 ['/runs/other']"),
        ):
            with Caller(place, **hello) as wrong:
                assert why in str(wrong.hears(leader)["why"])
        with Caller(place, machine=1, runs=["/runs/mine"]) as first:
            until(leader.ready)
            with Caller(place, machine=1, runs=["/runs/mine"]) as second:
                assert "is there already" in str(second.hears(leader)["why"])
            with socket.create_connection((place.address, place.port)) as stray:
                stray.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert leader.ready(), "who speaks something else is not listened to"
            leader.dismiss(4)
            heard: list[dict[str, object]] = []
            until(lambda: heard.extend(first.line.receive()) or heard)
            assert heard == [{"do": "exit", "code": 4}]


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("", free_port())) as taken, pytest.raises(UsageError, match=r"main_port: \d+: address"):
        Leader(Place(0, 2, "127.0.0.1", taken.getsockname()[1]))


def run_both(point: Point, dies: int) -> tuple[Scheduler, list[int]]:
    """Run a pipeline on two machines, one of them a thread; return the scheduler and the other's exit code."""
    port = free_port()
    found = local_launcher(point.config, point.stages)
    places = [Place(rank, 2, "127.0.0.1", port) for rank in (0, 1)]
    first, second = (StandingIn(**{**vars(found), "place": place}, dies=dies) for place in places)
    codes: list[int] = []
    follower = Follower({str(point.run.path): (point, second)}, places[1], StopRequests(), Console(quiet=True))
    thread = threading.Thread(target=lambda: codes.append(follow(follower, lambda: False, 60.0)))
    thread.start()
    with leading(places[0], [str(point.run.path)]) as leader, Display(Console(quiet=True)) as display:
        leader.grace_seconds = 0.2
        point.run.open(point.config, point.stages)
        resolver = Resolver(point.config, point.run, first.distributed)
        scheduler = Scheduler(
            point.stages, resolver, point.run, first, point.config.launcher, display, StopRequests(), others=leader
        )
        scheduler.run()
        leader.dismiss(next((task.code for task in scheduler.tasks.values() if task.code), 0))
    thread.join()
    return scheduler, codes


def test_both_machines_start_their_ranks_and_end_together(tmp_path: Path) -> None:
    point = two_machines(tmp_path)
    scheduler, codes = run_both(point, dies=-1)
    assert {task.state for task in scheduler.tasks.values()} == {State.DONE}
    assert codes == [0]
    met = [json.loads((tmp_path / "outputs" / "met" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert met[0] == met[1], "one port, and one folder for the signs of life"
    logs = point.run.path / "logs" / "sft"
    assert (logs / "machine_1.attempt_1.log").is_file()
    assert point.run.attempts("sft") == [logs / "attempt_1.log"], "the other machine's log is no attempt of its own"


def test_ranks_lost_on_one_machine_end_those_of_the_other(tmp_path: Path) -> None:
    scheduler, codes = run_both(two_machines(tmp_path), dies=1)
    task = scheduler.tasks["sft"]
    assert (task.state, task.code, codes) == (State.STOPPED, 75, [75])
    assert task.message == "a rank on machine 1 was lost; the same command goes on from the last checkpoint"


def test_a_machine_that_goes_away_ends_the_stage_and_one_whose_first_machine_does_ends_its_ranks(
    tmp_path: Path,
) -> None:
    place = Place(0, 2, "127.0.0.1", free_port())
    with leading(place, ["/runs/mine"]) as leader:
        other = Caller(place, machine=1, runs=["/runs/mine"])
        until(leader.ready)
        port = leader.start("/runs/mine", "sft", tmp_path / "attempt_1.log")
        order = other.hears(leader)
        assert order == {"do": "start", "run": "/runs/mine", "stage": "sft", "log": "attempt_1.log", "port": port}
        assert leader.went() is None
        other.line.close()
        until(leader.went)
        assert leader.went() == "machine 1 was lost"
        assert leader.lost() is None, "ranks here may still say what they know"
        leader.grace_seconds = 0.0
        assert leader.lost() == "machine 1 was lost"
        assert leader.missing() == [1]
    point, server = two_machines(tmp_path), socket.create_server(("127.0.0.1", 0))
    place = Place(1, 2, "127.0.0.1", server.getsockname()[1])
    launcher = StandingIn(**{**vars(local_launcher(point.config, point.stages)), "place": place})
    follower = Follower({str(point.run.path): (point, launcher)}, place, StopRequests(), Console(quiet=True))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(follow(follower, lambda: False, 60.0)))
    thread.start()
    leading_line = Line(server.accept()[0])
    until(leading_line.receive)
    leading_line.close()
    thread.join()
    server.close()
    assert codes == [75]
