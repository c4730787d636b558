"""What PPO says of input that it cannot use: one line, with the number that is wrong, and the documented exit code."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import pytest
from build_artifacts import build_model, build_prompts, build_reward_model, recommitted
from forked_stages import run_child

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
KNOBS = {
    "rollout_batch_size": "8",
    "global_batch_size": "4",
    "ppo_epochs": "1",
    "max_steps": "2",
    "max_new_tokens": "6",
    "log_steps": "1",
    "critic.kind": "policy",
}


def often_nan(messages: object, response: str, reference: str | None) -> float:
    """Return NaN for the longer half of the alphabet."""
    return math.nan if response[:1] > "m" else 1.0


def always_one(messages: object, response: str, reference: str | None) -> float:
    """Return what teaches nothing."""
    return 1.0


def forget_handlers() -> None:
    """Let a stage set up its log as in a process of its own: pytest's handlers would keep it from that."""
    logging.getLogger().handlers.clear()


class Bench:
    """A model, its prompts, and reward models that fit it or do not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root)
        self.prompts = build_prompts(root, self.model, count=8)
        self.reward = build_reward_model(root, self.model)
        other = build_model(root, 1, "other-0001", vocab_size=300, template=TEMPLATE, eos_token="</s>")
        self.foreign = build_reward_model(root, other, name="foreign-0001")
        self.bare = build_reward_model(root, other, name="no_template-0001")
        (self.bare / "chat_template.jinja").unlink()
        recommitted(self.bare)
        self.number = 0

    def run(self, reward: Path | None, knobs: dict[str, str]) -> tuple[int, str]:
        """Run PPO; returns its exit code and what it printed."""
        self.number += 1
        paths = {"model": self.model, "data": self.prompts} | ({"reward": reward} if reward else {})
        arguments = [f"inputs.{name}={path}" for name, path in paths.items()]
        arguments += [f"output={self.root / 'artifacts' / f'ppo-{self.number:04d}'}", "tracking.wandb=disabled"]
        log = self.root / "child.log"
        log.unlink(missing_ok=True)
        arguments += [f"{name}={value}" for name, value in (KNOBS | knobs).items()]
        code, _ = run_child("posttrain.train.ppo", arguments, self.root, prepare=forget_handlers)
        return code, log.read_text()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def python(function: object) -> str:
    return f"[{{kind: python, function: '{__name__}:{getattr(function, '__name__')}'}}]"  # noqa: B009


REFUSED = [
    ("bare", {}, r"inputs\.reward \(no_template-0001\): the tokenizer has no chat template; set .*=chatml"),
    (
        "foreign",
        {"critic.kind": "reward_model"},
        "foreign-0001 reads other tokens than the policy; use critic.kind=poli",
    ),
    (None, {}, r"train\.ppo\.rewards\.0\.kind: 'reward_model', but there is no inputs\.reward; give one"),
    (
        None,
        {"critic.kind": "reward_model"},
        r"critic\.kind: 'reward_model', but there is no inputs\.reward; use policy",
    ),
    (
        "reward",
        {"max_new_tokens": "118"},
        r"max_new_tokens=118: \d of 8 prompts leave no room .* context of 128 \(the fi",
    ),
    ("reward", {"rollout_batch_size": "10"}, "rollout_batch_size=10 is not a multiple of global_batch_size=4; use 8"),
    ("reward", {"samples_per_prompt": "3"}, "rollout_batch_size=8 is not a multiple of samples_per_prompt=3; use 6"),
    (
        "reward",
        {"rewards": "[{kind: scorer}]"},
        "train.ppo.rewards.0: prompt prompt/0 has no scorer; use evaluation rec",
    ),
    ("reward", {"kl.place": "loss"}, "estimator=k1 in the loss has an expected gradient of zero; use k2 or k3"),
]


@pytest.mark.parametrize(("reward", "knobs", "line"), REFUSED, ids=[line[:24] for _, _, line in REFUSED])
def test_refused_in_one_line_before_training(
    bench: Bench, reward: str | None, knobs: dict[str, str], line: str
) -> None:
    code, log = bench.run(getattr(bench, reward) if reward else None, knobs)
    assert code == 2
    assert len(re.findall(rf"^error: .*{line}", log, re.MULTILINE)) == 1
    assert "Traceback" not in log and "step 1/" not in log


def test_a_reward_that_is_not_finite_ends_the_run_with_its_counts(bench: Bench) -> None:
    code, log = bench.run(None, {"rewards": python(often_nan)})
    assert code == 1
    assert re.search(r"^error: reward python: [1-8] of 8 values are not finite; look at", log, re.MULTILINE)
    assert "Traceback" not in log and "step 1/" not in log


def test_a_reward_that_is_the_same_for_all_is_warned_of_and_trained_with(bench: Bench) -> None:
    code, log = bench.run(None, {"rewards": python(always_one)})
    assert code == 0
    assert "WARNING posttrain.train.rewards.weighted: reward python: all 8 answers got 1, which teaches nothing" in log


def test_a_reward_model_of_another_vocabulary_serves_with_its_own_template(bench: Bench) -> None:
    code, log = bench.run(bench.foreign, {})
    assert code == 0, log[-3000:]
    assert re.search(r"step 1/2 .*objective/reward_model", log)


def test_a_reward_model_without_its_moments_is_refused(bench: Bench) -> None:
    unknown = build_reward_model(bench.root, bench.model, name="unknown-0001")
    config = json.loads((unknown / "config.json").read_text())
    for name in ("reward_mean", "reward_std"):
        del config[name]
    (unknown / "config.json").write_text(json.dumps(config))
    code, printed = bench.run(recommitted(unknown), {})
    assert code == 2
    assert "inputs.reward: its config.json has no reward_mean and reward_std; give a model that" in printed
