"""RLOO and GRPO end to end on a tiny policy that was taught to answer, each run in a process of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import build_comparisons, build_demonstrations, build_model, build_prompts, commit_artifact
from forked_stages import run_child, signal_in
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.stage.artifact import read_manifest

LORA = {"adapter.kind": "lora", "adapter.rank": 4}
STARTS = "[{kind: regex, name: colour, pattern: '^(red|blue|green)'}]"
SMALL = {
    "rollout_batch_size": 16,
    "samples_per_prompt": 4,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "num_iterations": 2,
    "max_new_tokens": 12,
    "rewards": STARTS,
    "optimizer.learning_rate": 3e-3,
}


class Bench:
    """A policy that answers with a few words and ends, prompts for it, and a way to run stages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = build_model(root, attention_dropout=0.0, new_tokens=True)
        self.prompts = build_prompts(root, self.base, reference="red", scorer="exact")
        demonstrations = {"model": self.base, "data": build_demonstrations(root, self.base)}
        knobs = {"global_batch_size": 8, "max_steps": 60, "optimizer.learning_rate": 0.01}
        self.policy = self.run("sft", "sft", demonstrations, knobs)
        self.adapter = self.run("sft", "sft-lora", demonstrations, {**knobs, **LORA})

    def run(
        self,
        stage: str,
        name: str,
        inputs: dict[str, Path],
        knobs: dict[str, Any],
        expect: int = 0,
        prepare: Callable[[], None] | None = None,
    ) -> Path:
        """Run a stage to an artifact of that name and return its directory."""
        output = self.root / "artifacts" / name
        knobs = {"log_steps": 1, "seed": 3, **knobs}
        arguments = [f"inputs.{key}={path}" for key, path in inputs.items()]
        arguments += [f"output={output}", "tracking.wandb=disabled", *(f"{k}={v}" for k, v in knobs.items())]
        (self.root / "child.log").unlink(missing_ok=True)
        code, _ = run_child(f"posttrain.train.{stage}", arguments, self.root, prepare=prepare)
        assert code == expect, self.log()[-3000:]
        return output

    def learn(self, stage: str, name: str, knobs: dict[str, Any], model: Path | None = None, **options: Any) -> Path:
        """Run RLOO or GRPO from a policy on the prompts."""
        inputs = {"model": model or self.policy, "data": self.prompts, **options.pop("more_inputs", {})}
        return self.run(stage, name, inputs, {**SMALL, **knobs}, **options)

    def log(self) -> str:
        """What the last stage printed."""
        return (self.root / "child.log").read_text()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def history(artifact: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def rollouts(artifact: Path, name: str) -> list[float]:
    return [line[name] for line in history(artifact) if name in line]


@pytest.mark.parametrize("stage", ["rloo", "grpo"])
def test_a_simple_reward_is_learned(bench: Bench, stage: str) -> None:
    knobs = {"rollout_batch_size": 64, "global_batch_size": 32, "samples_per_prompt": 8, "max_steps": 24}
    artifact = bench.learn(stage, f"{stage}-learns", {**knobs, "missing_eos_penalty": 0.0, "micro_batch_size": 32})
    shares = rollouts(artifact, "objective/colour")
    assert len(shares) == 6
    assert shares[0] < 0.5
    assert shares[-1] > shares[0] + 0.3
    first = history(artifact)[0]
    assert first["policy/rollout_difference"] < 1e-5  # the sampler and TRL's loss see the same policy
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert rollouts(artifact, "objective/kl")[-1] > 0.1
    assert 0 < first["response/ended"] < 1 < first["response/length"]
    assert read_manifest(artifact).headline.startswith("reward ")
    shown = [json.loads(line) for line in (artifact / "logs" / "samples.jsonl").read_text().splitlines()]
    assert [row["rollout"] for row in shown] == [number for number in range(1, 7) for _ in range(4)]


def test_a_reward_model_and_a_scorer_add_up(bench: Bench) -> None:
    comparisons = build_comparisons(bench.root, bench.base)
    knobs = {"global_batch_size": 8, "max_steps": 20, "optimizer.learning_rate": 3e-3}
    reward = bench.run("reward", "reward", {"model": bench.policy, "data": comparisons}, knobs)
    terms = "[{kind: reward_model, weight: 0.5}, {kind: scorer, weight: 2.0}]"
    knobs = {"rewards": terms, "max_steps": 4, "missing_eos_penalty": 0.25, "beta": 0.0}
    artifact = bench.learn("grpo", "grpo-reward", knobs, more_inputs={"reward": reward})
    first = history(artifact)[0]
    wanted = 0.5 * first["objective/reward_model"] + 2 * first["objective/scorer"]
    assert first["objective/scores"] == pytest.approx(wanted - 0.25 * (1 - first["response/ended"]), abs=1e-5)
    assert first["objective/reward_model"] != 0
    assert "objective/kl" not in first  # β = 0 does without the reference
    bench.learn("grpo", "grpo-no-reward", knobs, expect=2)
    assert "train.grpo.rewards.0.kind: 'reward_model', but there is no inputs.reward" in bench.log()


LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
OPTIONS: dict[str, dict[str, Any]] = {
    "luspo": {"importance_sampling": "sequence"},
    "cispo": {"clip_range_high": 5.0},
}


@pytest.mark.parametrize("loss", [*LOSSES, "rloo"])
def test_a_step_is_the_same_however_it_is_cut(bench: Bench, loss: str) -> None:
    """Loss and gradient norm of steps on responses of different lengths, in one micro-batch and in four."""
    stage = "rloo" if loss == "rloo" else "grpo"
    knobs = {"max_steps": 2, "optimizer.learning_rate": 1e-4, **OPTIONS.get(loss, {})}
    if stage == "grpo":
        knobs["loss"] = loss
    whole = history(bench.learn(stage, f"whole-{loss}", {**knobs, "micro_batch_size": 8}))
    parts = history(bench.learn(stage, f"parts-{loss}", {**knobs, "micro_batch_size": 2}))
    assert whole[0]["response/length"] < whole[0]["response/length_max"]
    for one, other in zip(whole, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert whole[0]["grad_norm"] > 0


RESUMED = [("grpo", {"early_stop_kl": 0.5}), ("rloo", {}), ("grpo", LORA)]


@pytest.mark.parametrize(("stage", "knobs"), RESUMED)
def test_killed_in_a_rollout_it_goes_on_bit_for_bit(bench: Bench, stage: str, knobs: dict[str, Any]) -> None:
    adapter = "adapter.kind" in knobs
    model = bench.adapter if adapter else bench.policy
    knobs = {**knobs, "max_steps": 11, "save_steps": 3}
    name = f"{stage}-{'lora' if adapter else 'full'}"
    whole = bench.learn(stage, f"{name}-whole", knobs, model)
    # the third rollout begins after step 8; the checkpoint of step 6 is in the middle of the second
    kill = partial(signal_in, "finish_groups", 3, signal.SIGKILL)
    broken = bench.learn(stage, f"{name}-killed", knobs, model, expect=-signal.SIGKILL, prepare=kill)
    assert not broken.exists()
    bench.learn(stage, f"{name}-killed", knobs, model, prepare=kill)  # from the start, it would die again
    assert read_manifest(broken).digest == read_manifest(whole).digest
    if adapter:
        assert not (whole / "reference").exists()
        assert not (whole / "ref").exists()
    assert rollouts(broken, "objective/kl") == rollouts(whole, "objective/kl")


def test_positions_count_from_where_a_prompt_begins(bench: Bench) -> None:
    """A model with learned positions, prompts of different lengths: as sampled, so trained."""
    directory = bench.root / "artifacts" / "gpt2-0001"
    tokenizer = load_tokenizer(bench.base)
    tokenizer.save_pretrained(str(directory))
    torch.manual_seed(0)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, **ends)
    model = GPT2LMHeadModel(shape)
    model.transformer.wpe.weight.data.normal_()  # positions matter
    model.save_pretrained(str(directory))
    policy = commit_artifact(directory, "model", "base")
    artifact = bench.learn("rloo", "rloo-gpt2", {"max_steps": 1, "rewards": "[{kind: regex, pattern: e}]"}, policy)
    assert history(artifact)[0]["policy/rollout_difference"] < 1e-5


def test_an_alarm_ends_the_stage_and_names_its_knob(bench: Bench) -> None:
    knobs = {"alarms.max_kl": 1e-6, "max_steps": 12, "save_steps": 2}
    artifact = bench.learn("rloo", "rloo-alarm", knobs, expect=1)
    (line,) = [line for line in bench.log().splitlines() if line.startswith("error: ")]
    assert "rollout 2 at step 4" in line
    assert "train.rloo.alarms.max_kl=1e-06" in line
    kept = artifact.with_name("rloo-alarm.work") / "checkpoints" / "checkpoint-4" / "model.safetensors"
    assert all(tensor.isfinite().all() for tensor in load_file(kept).values())
