"""The worked examples of docs/examples, applied to a copy of the package as they are shipped, and run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from cloned_package import CLONE, ClonedPackage

from posttrain.data.messages import Conversation
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.stage.schema import build
from posttrain.train.config.rollout import RewardTerm
from posttrain.train.rewards.terms import build_rewards
from posttrain.train.rewards.weighted import Answer

EXAMPLES = CLONE / "docs" / "examples"
MOST_LINES = 40
ANSWERS = {"a cat is a cat": 0.6, "One, two": 1.0, "No no NO no": 0.25, "": 0.0}
"""The share of words that were not said before."""
REWARDS_OF = """
import json, sys, torch
from posttrain.stage.schema import build
from posttrain.train.config.rollout import RewardTerm
from posttrain.train.rewards.terms import build_rewards
from posttrain.train.rewards.weighted import Answer

terms = [build(RewardTerm, json.loads(sys.argv[1]), "rewards")]
answers = [Answer([], [], [], text, True, None, None) for text in json.loads(sys.argv[2])]
print(json.dumps(build_rewards(terms, [], None, torch.device("cpu"), 64, "train.ppo").score(answers)[0]))
"""


def lines_of(example: str) -> int:
    """Return the lines that an example adds to the package, empty ones apart: modules whole, diffs by their +."""
    count = 0
    for path in (EXAMPLES / example).rglob("*.*"):
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.suffix == ".diff":
            lines = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
        count += sum(bool(line.strip()) for line in lines if path.suffix in (".py", ".diff"))
    return count


def apply(diff: Path, clone: ClonedPackage) -> None:
    done = subprocess.run(
        ["git", "apply", "--verbose", diff], cwd=clone.package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{diff} no longer fits the package; make it anew:\n{done.stderr}"


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()))
def test_an_example_is_short(example: str) -> None:
    assert 0 < lines_of(example) < MOST_LINES


def test_a_stage_is_a_schema_a_function_and_three_edits(tmp_path: Path) -> None:
    example = EXAMPLES / "new_stage"
    clone = ClonedPackage(tmp_path)
    shutil.copy2(CLONE / "pyproject.toml", clone.package)
    assert "data.lengths" not in STAGE_TYPES
    apply(example / "registered.diff", clone)
    shutil.copytree(example / "data", clone.package / "data", dirs_exist_ok=True)
    command = ["run", "recipe=lengths", "--config-dir", str(example / "conf"), "data.lengths.quantiles=[0.5,1]"]

    done = clone.posttrain(*command)
    assert done.returncode == 0, done.stderr
    (artifact,) = (tmp_path / "outputs" / "artifacts").glob("lengths-*")
    made = json.loads((artifact / "lengths.json").read_text())
    assert made["quantiles"] == [0.5, 1.0]
    assert "arithmetic" in made["words"]
    longest = max(greatest for _, greatest in made["words"].values())
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert (manifest["kind"], manifest["metrics"]) == ("lengths", {"longest": longest})
    assert list(manifest["parents"]) == ["data"]

    assert set(clone.states(*command[1:]).values()) == {"cached"}
    assert clone.posttrain(*command).returncode == 0
    other = clone.states(*command[1:-1], "data.lengths.quantiles=[0.9]")
    assert other == {"demo": "cached", "demonstrations": "cached", "lengths": "would"}


def test_a_reward_of_the_users_own_is_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "reward_term")
    terms = [
        build(RewardTerm, {"kind": "python", "function": "variety:variety", "weight": 0.5}, "rewards"),
        build(RewardTerm, {"kind": "regex", "pattern": "cat"}, "rewards"),
    ]
    tokenizer: Any = None
    rewards = build_rewards(terms, [], tokenizer, torch.device("cpu"), 64, "train.ppo")
    totals, parts = rewards.score([Answer(Conversation([]), [], [], text, True, None, None) for text in ANSWERS])
    assert parts["python"] == list(ANSWERS.values())
    assert totals == [1.3, 0.5, 0.125, 0.0]


def test_a_kind_of_reward_is_a_knob_and_a_function(tmp_path: Path) -> None:
    clone = ClonedPackage(tmp_path)
    apply(EXAMPLES / "reward_term" / "built_in.diff", clone)

    def rewards(term: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return clone.python("-c", REWARDS_OF, json.dumps(term), json.dumps(list(ANSWERS)))

    assert json.loads(rewards({"kind": "variety", "ngram": 1}).stdout) == list(ANSWERS.values())
    assert json.loads(rewards({"kind": "variety", "ngram": 2}).stdout) == [0.75, 1.0, pytest.approx(1 / 3), 0.0]
    assert "ngram is for kind=variety, which needs it" in rewards({"kind": "variety"}).stderr
