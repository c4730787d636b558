"""W&B beside training that is killed, and training beside W&B that is killed, deaf or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_demonstrations, build_model, stage_command
from fake_wandb import FakeWandb
from forked_stages import run_child
from wandb_files import history, merged, offline_files, records

from posttrain.stage.artifact import read_manifest
from posttrain.stage.tracking import read_metrics

STEPS, SAVE_STEPS = 60, 20
KNOBS = ["global_batch_size=8", "micro_batch_size=4", f"save_steps={SAVE_STEPS}", "log_steps=1", f"max_steps={STEPS}"]
CANARY = "canary0secret0" * 3
"""An API key in form: 42 characters."""
DEAD = "http://127.0.0.1:9"
FOREIGN = {"WANDB_SERVICE": "3-1-unix-/nowhere/socket"}
"""What a notebook leaves in the environment that once opened a run and has ended it since."""


class Scene:
    """The inputs of an SFT stage; `digest` is what it makes without W&B."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root)
        self.data = build_demonstrations(root, self.model)
        assert self.run("plain", "disabled") == 0, self.log()
        self.digest = read_manifest(self.output("plain")).digest

    def output(self, name: str) -> Path:
        return self.root / "artifacts" / name

    def work(self, name: str) -> Path:
        return self.root / "artifacts" / f"{name}.work"

    def arguments(self, name: str, mode: str) -> list[str]:
        inputs = [f"inputs.model={self.model}", f"inputs.data={self.data}"]
        return [*inputs, f"output={self.output(name)}", f"tracking.wandb={mode}", "seed=3", *KNOBS]

    def run(self, name: str, mode: str, watch: Callable[[int], bool] | None = None, url: str = DEAD) -> int:
        """Run the stage in a forked child; returns its exit code."""
        environment = {"WANDB_API_KEY": CANARY, "WANDB_BASE_URL": url, **FOREIGN}
        arguments = self.arguments(name, mode)
        return run_child("posttrain.train.sft", arguments, self.root, watch=watch, environment=environment)[0]

    def start(self, name: str, mode: str, url: str = DEAD) -> subprocess.Popen[str]:
        """Start the stage as a process of its own, exit handlers and all."""
        command = [*stage_command("train.sft", self.output(name), {}), *self.arguments(name, mode)]
        environment = {**os.environ, **ENVIRONMENT, **FOREIGN, "WANDB_API_KEY": CANARY, "WANDB_BASE_URL": url}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def log(self) -> str:
        return (self.root / "child.log").read_text()[-3000:]

    def steps(self, name: str) -> list[int]:
        path = self.work(name) / "metrics.jsonl"
        return [row["step"] for row in read_metrics(path)] if path.exists() else []

    def check_same_model(self, name: str) -> None:
        assert read_manifest(self.output(name)).digest == self.digest
        lines = read_metrics(self.output(name) / "logs" / "metrics.jsonl")
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("wandb"))


def kill_past(scene: Scene, name: str, step: int) -> Callable[[int], bool]:
    """Return a watch that kills the stage once it has logged a step."""

    def watch(pid: int) -> bool:
        if step not in scene.steps(name):
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    return watch


def kill_at_checkpoint(scene: Scene, name: str, step: int) -> Callable[[int], bool]:
    """Return a watch that kills the stage as soon as a checkpoint is committed."""
    checkpoint = scene.work(name) / "checkpoints" / f"checkpoint-{step}"

    def watch(pid: int) -> bool:
        if not checkpoint.exists():
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    return watch


def test_killed_twice_the_offline_files_hold_each_step_once(scene: Scene) -> None:
    name = "twice"
    assert scene.run(name, "offline", kill_past(scene, name, SAVE_STEPS + 15)) == -9
    assert scene.run(name, "offline", kill_at_checkpoint(scene, name, 2 * SAVE_STEPS)) == -9
    assert scene.run(name, "offline") == 0, scene.log()
    scene.check_same_model(name)

    (file,) = offline_files(scene.work(name))
    found = records(file)
    key = read_manifest(scene.output(name)).key
    assert {content["run_id"] for kind, content in found if kind == "run"} == {f"sft-{key[:16]}"}
    assert history(file) == merged(read_metrics(scene.output(name) / "logs" / "metrics.jsonl"))
    assert [row["_step"] for row in history(file)] == list(range(1, STEPS + 1))
    assert [content.get("exit_code", 0) for kind, content in found if kind == "exit"] == [0]

    artifacts = [content for kind, content in found if kind == "artifact"]
    used = [a["name"] for a in artifacts if a.get("use_after_commit")]
    made = [(a["name"], a["type"]) for a in artifacts if not a.get("use_after_commit")]
    assert sorted(used) == sorted(parent.name for parent in read_manifest(scene.output(name)).parents.values())
    assert made == [(name, "model")]
    digests = {json.loads(a["metadata"])["digest"] for a in artifacts}
    assert digests == {read_manifest(path).digest for path in (scene.output(name), scene.model, scene.data)}


def test_killed_online_the_server_gets_each_step_once(scene: Scene) -> None:
    name = "online"
    with FakeWandb() as server:
        assert scene.run(name, "online", kill_past(scene, name, SAVE_STEPS + 15), server.url) == -9
        assert scene.run(name, "online", url=server.url) == 0, scene.log()
    scene.check_same_model(name)
    (run,) = server.runs.values()
    lines = read_metrics(scene.output(name) / "logs" / "metrics.jsonl")
    assert run.steps == list(range(1, STEPS + 1))
    assert [row["loss"] for row in run.history if "loss" in row] == [line["loss"] for line in lines if "loss" in line]
    assert run.exit_code == 0
    assert (scene.work(name) / "wandb" / "uploaded").exists()


def test_a_server_that_is_not_there_hurts_nothing(scene: Scene) -> None:
    process = scene.start("dead", "online")
    _, output = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("W&B is off for the rest of this stage") == 1
    assert "Traceback" not in output
    scene.check_same_model("dead")


def core_of(pid: int) -> int | None:
    """Return the process id of a stage's `wandb-core`."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:  # it has just ended
            continue
        if "wandb-core" in name and int(fields.split()[1]) == pid:
            return int(path.parent.name)
    return None


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_core_killed_or_stopped_hurts_nothing(scene: Scene, mode: str, number: signal.Signals) -> None:
    name = f"{mode}-{number.name}"
    with FakeWandb() as server:
        process = scene.start(name, mode, server.url)
        while 10 not in scene.steps(name) or (core := core_of(process.pid)) is None:
            assert process.poll() is None, process.communicate()[1][-3000:]
            time.sleep(0.02)
        os.kill(core, number)
        _, output = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("W&B is off for the rest of this stage") == 1
    assert "Traceback" not in output
    assert not Path(f"/proc/{core}").exists()
    scene.check_same_model(name)


def test_the_api_key_is_in_no_file(scene: Scene) -> None:
    files = [path for path in scene.root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
