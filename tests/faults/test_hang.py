"""A rank that stands still: it is noticed, all ranks write their stacks and end, and the next run ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_demonstrations, build_model, stage_command
from forked_ranks import logs_of, start_ranks, train, wait_for, work_order
from forked_stages import signal_in

from posttrain.pipeline.local.launch import Command
from posttrain.pipeline.local.process import StageProcess
from posttrain.pipeline.watch.watchdog import Watchdog
from posttrain.stage import heartbeat
from posttrain.stage.artifact import read_manifest
from posttrain.stage.leash import VARIABLE as LEASH
from posttrain.stage.spec import Distributed

KNOBS = {"global_batch_size": 8, "micro_batch_size": 4, "save_steps": 2, "log_steps": 1, "max_steps": 7}
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
LAUNCH += ["--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"]
RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: own
stages:
  rows: {run: data.curate, with: {record_type: demonstration, sources: [{name: mine, path: rows.jsonl}]}}
"""


class Scene:
    """Inputs of a two-rank SFT and what it makes when it is left alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        model = build_model(root)
        self.inputs = {"model": model, "data": build_demonstrations(root, model)}
        self.how = Distributed("ddp", 2)
        os.environ.update(ENVIRONMENT)
        self.digest = read_manifest(train("sft", self.output("whole"), self.inputs, self.how, **KNOBS)).digest

    def output(self, name: str) -> Path:
        return self.root / "artifacts" / name


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("hang"))


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for a condition; fail when it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.05)


def send_to(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def runs(pid: int) -> bool:
    """Whether a process is there; one that ended may wait for its parent to hear of it."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_stopped_rank_is_found_and_the_next_run_ends_the_same(scene: Scene) -> None:
    output, folder = scene.output("stopped"), scene.root / "stopped.ranks"
    spec = work_order("sft", output, scene.inputs, scene.how, **KNOBS)

    def prepare() -> None:
        os.environ[heartbeat.VARIABLE] = str(folder)
        if os.environ["RANK"] == "1":
            signal_in("training_step", 6, signal.SIGSTOP, stay=True)

    children = start_ranks("sft", spec, 2, prepare)
    watchdog = Watchdog(folder, 10.0)
    hung: list[str] = []
    until(lambda: hung.append(watchdog.hung() or "") or hung[-1])
    assert hung[-1].startswith(f"rank 1 (pid {children[1]} on ")
    assert ", stopped) stood still for 10 s (training, step " in hung[-1]
    stacks = watchdog.dump(partial(send_to, children))
    waiting, stopped = (path.read_text() for path in stacks)
    assert "/train/engine/fit.py" in waiting
    assert "/torch/" in waiting
    assert "in training_step" in stopped
    send_to(children, signal.SIGKILL)
    assert wait_for(children) == [-9, -9], logs_of(spec)[-3000:]
    assert wait_for(start_ranks("sft", spec, 2)) == [0, 0], logs_of(spec)[-3000:]
    assert read_manifest(output).digest == scene.digest


@pytest.mark.slow
def test_the_local_launcher_ends_a_hung_launch(scene: Scene) -> None:
    """Through `accelerate launch`, whose own clean-up would wait for the stopped rank for half a minute."""
    output, log = scene.output("launched"), scene.root / "attempt_1.log"
    arguments = stage_command("train.sft", output, scene.inputs, seed=3, **{**KNOBS, "max_steps": 1000})
    command = Command([sys.executable, *LAUNCH, *arguments[1:]], {**ENVIRONMENT, LEASH: "stdin"})
    process = StageProcess(command, output.with_name("launched.outcome.json"), log, timeout_seconds=40.0)
    folder = log.with_suffix(".ranks")
    try:
        until(lambda: [said.rank for said in heartbeat.read_beats(folder) if (said.step or 0) >= 3] == [0, 1])
        pids = [said.pid for said in heartbeat.read_beats(folder)]
        os.kill(pids[1], signal.SIGSTOP)
        until(process.finished)
    finally:
        process.kill()
    outcome = process.result()
    assert outcome.code == 75
    assert outcome.message.startswith(f"hung: rank 1 (pid {pids[1]} on ")
    assert outcome.message.endswith("the same command goes on from the last checkpoint")
    for rank in (0, 1):
        assert "/train/engine/fit.py" in (folder / f"rank_{rank}.stack.txt").read_text()
    until(lambda: not any(runs(pid) for pid in [process.pid, *pids]), seconds=5)


def test_a_run_whose_stage_hangs_exits_75_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "own.yaml").write_text(RECIPE)
    rows = (f'{{"prompt": "question {i}", "completion": "answer {i}"}}\n' for i in range(80_000))
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    cli = [sys.executable, "-m", "posttrain.pipeline.cli"]
    run = [*cli, "run", "recipe=own", "run_name=mine", "--config-dir", "conf", "distributed.timeout_seconds=20"]
    folder = tmp_path / "outputs" / "runs" / "mine" / "logs" / "rows" / "attempt_1.ranks"
    process = subprocess.Popen(run, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: any(said.pulse for said in heartbeat.read_beats(folder)))
    (said,) = heartbeat.read_beats(folder)
    os.kill(said.pid, signal.SIGSTOP)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert f"stopped: rows: hung: rank 0 (pid {said.pid} on " in errors
    assert "data/curate.py" in (folder / "rank_0.stack.txt").read_text()
    assert not runs(said.pid)
    status = subprocess.run([*cli, "status"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "hung: rank 0" in " ".join(status.split())
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, check=False).returncode == 0
