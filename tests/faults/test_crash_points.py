"""Killed at any moment and started again, a stage ends with the weights that it would have had."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from build_artifacts import (
    build_comparisons,
    build_demonstrations,
    build_model,
    build_prompts,
    build_reward_model,
    build_unpaired,
)
from forked_stages import run_child

from posttrain.stage.artifact import read_manifest, verify

STEPS, SAVE_STEPS = 7, 2
KNOBS = ["global_batch_size=8", "micro_batch_size=4", f"save_steps={SAVE_STEPS}", "log_steps=1", f"max_steps={STEPS}"]
ROLLOUTS = ["rollout_batch_size=16", "max_new_tokens=8", "samples_per_prompt=2"]
MORE = {
    "ppo": [*ROLLOUTS, "ppo_epochs=2", "kl.target=1.0", "kl.horizon=64", "critic.warmup_steps=1"],
    "grpo": [*ROLLOUTS, "num_iterations=2", "beta=0.05"],
}
STAGES = ["sft", "reward", "dpo", "kto", "ppo", "grpo"]


class Scene:
    """A stage's inputs, and what an uninterrupted run of it makes."""

    def __init__(self, root: Path, stage: str) -> None:
        self.root, self.stage = root, stage
        model = build_model(root)
        self.inputs = {"model": model, "data": build_comparisons(root, model)}
        if stage == "sft":
            self.inputs = {"model": model, "data": build_demonstrations(root, model)}
        if stage in MORE:
            self.inputs = {
                "model": model,
                "data": build_prompts(root, model),
                "reward": build_reward_model(root, model),
            }
        if stage == "kto":
            self.inputs = {"model": model, "data": build_unpaired(root, model)}
        if stage in ("dpo", "kto"):
            reference = root / "artifacts" / "reference-0001"
            arguments = [f"inputs.{name}={path}" for name, path in self.inputs.items()]
            assert run_child("posttrain.train.reference", [*arguments, f"output={reference}"], root)[0] == 0
            self.inputs["reference"] = reference
        self.output = root / "artifacts" / f"{stage}-0001"
        started = time.monotonic()
        code, self.events = self.run()
        assert code == 0, (root / "child.log").read_text()[-3000:]
        self.seconds = time.monotonic() - started
        self.digest = read_manifest(self.output).digest
        self.clear()

    def run(self, signal_at: int | None = None, kill_after: float | None = None) -> tuple[int, int]:
        """Run the stage once in a child."""
        arguments = [f"inputs.{name}={path}" for name, path in self.inputs.items()]
        arguments += [f"output={self.output}", "tracking.wandb=disabled", "seed=3", *KNOBS, *MORE.get(self.stage, [])]
        return run_child(
            f"posttrain.train.{self.stage}", arguments, self.root, signal_at=signal_at, kill_after=kill_after
        )

    def clear(self) -> None:
        """Forget the run, as if it had never been started."""
        for path in self.output.parent.glob(f"*{self.output.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def check_same_result(self) -> None:
        """The artifact is whole, its content is bit-identical, and its log has each step once."""
        assert verify(self.output) == []
        assert read_manifest(self.output).digest == self.digest
        lines = [json.loads(line) for line in (self.output / "logs" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("sft"), "sft")


def kill_and_resume(scene: Scene, point: int) -> None:
    code, _ = scene.run(signal_at=point)
    assert code == -9, f"event {point} of {scene.events} was not reached"
    code, _ = scene.run()
    assert code == 0, (scene.root / "child.log").read_text()[-3000:]
    scene.check_same_result()
    scene.clear()


def test_two_clean_runs_make_the_same_bytes(sft: Scene) -> None:
    assert sft.run()[0] == 0
    sft.check_same_result()
    sft.clear()


@pytest.mark.parametrize("share", [0.02, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
def test_killed_at_a_file_event(sft: Scene, share: float) -> None:
    kill_and_resume(sft, max(1, round(share * sft.events)))


def test_killed_again_and_again_by_the_clock(sft: Scene) -> None:
    generator = random.Random(5)
    for _ in range(4):
        sft.run(kill_after=generator.uniform(0.05, 0.9) * sft.seconds)
        if sft.output.exists():
            break
    assert sft.run()[0] == 0
    sft.check_same_result()
    sft.clear()


def test_kto_is_killed_between_two_checkpoints(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "kto")
    kill_and_resume(scene, round(0.6 * scene.events))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_file_event(tmp_path: Path, stage: str) -> None:
    scene = Scene(tmp_path, stage)
    for point in range(1, scene.events + 1):
        kill_and_resume(scene, point)
    print(f"{stage}: {scene.events}/{scene.events} crash points ended bit-identical")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_fifty_random_times(tmp_path: Path, stage: str) -> None:
    scene = Scene(tmp_path, stage)
    generator = random.Random(0)
    killed = 0
    for _ in range(50):
        code, _ = scene.run(kill_after=generator.uniform(0.0, 1.0) * scene.seconds)
        killed += code == -9
        assert scene.run()[0] == 0
        scene.check_same_result()
        scene.clear()
    print(f"{stage}: {killed} of 50 runs were killed; all ended bit-identical")
