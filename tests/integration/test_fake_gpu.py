"""One step of every trainer on a GPU that is not there: whatever is left on the CPU is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from build_artifacts import build_comparisons, build_demonstrations, build_model, build_prompts, build_reward_model
from fake_gpu import step_on_fake_gpu
from forked_stages import run_child

from posttrain.stage.outcome import read_outcome

ROLLOUTS = {"rollout_batch_size": 8, "max_new_tokens": 6, "rewards": "[{kind: regex, pattern: e}]"}
KNOBS: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft packed": {"packing": True, "pack_length": 64},
    "reward": {},
    "dpo": {},
    "ppo": {**ROLLOUTS, "critic.kind": "policy"},
    "ppo shared": {**ROLLOUTS, "critic.kind": "shared"},
    "rloo": {**ROLLOUTS, "samples_per_prompt": 4},
    "grpo": {**ROLLOUTS, "samples_per_prompt": 4},
}

MOVES = {"policy/approxkl", "policy/ratio", "objective/scores", "time/rollout"}
LOGGED = {
    "sft": {"entropy", "token_accuracy"},
    "reward": {"accuracy", "margin", "mean_reward"},
    "dpo": set(),  # TRL keeps them
    "ppo": {*MOVES, "loss/value", "val/clipfrac"},
    "rloo": MOVES,
    "grpo": MOVES,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("fake_gpu")
    model = build_model(root, attention_dropout=0.0)
    made = {"root": root, "model": model, "reward": build_reward_model(root, model)}
    made |= {"demonstrations": build_demonstrations(root, model), "prompts": build_prompts(root, model)}
    made["comparisons"] = build_comparisons(root, model)
    reference = root / "artifacts" / "reference-0001"
    arguments = [f"inputs.model={model}", f"inputs.data={made['comparisons']}", f"output={reference}"]
    assert run_child("posttrain.train.reference", [*arguments, "tracking.wandb=disabled"], root)[0] == 0
    return {**made, "reference": reference}


@pytest.mark.parametrize("case", KNOBS)
def test_a_step_mixes_no_devices(inputs: dict[str, Path], case: str) -> None:
    stage = case.split()[0]
    data = {"sft": "demonstrations", "reward": "comparisons", "dpo": "comparisons"}.get(stage, "prompts")
    output = inputs["root"] / "artifacts" / f"{case.replace(' ', '-')}-step"
    knobs = {"global_batch_size": 4, "micro_batch_size": 4, "max_steps": 1, **KNOBS[case]}
    arguments = [f"inputs.model={inputs['model']}", f"inputs.data={inputs[data]}", f"output={output}"]
    arguments += [f"inputs.reference={inputs['reference']}"] if stage == "dpo" else []
    arguments += ["tracking.wandb=disabled", *(f"{name}={value}" for name, value in knobs.items())]
    run_child(f"posttrain.train.{stage}", arguments, inputs["root"], prepare=step_on_fake_gpu)
    outcome = read_outcome(output.with_name(f"{output.name}.outcome.json"))
    assert outcome is not None
    assert outcome.message.startswith("a step on the GPU: "), (inputs["root"] / "child.log").read_text()[-4000:]
    assert LOGGED[stage] <= set(outcome.message.partition(": ")[2].split(", "))
