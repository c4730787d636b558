"""What an edit of the project's own code runs again: the stages that it can change, and those that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloned_package import ClonedPackage

SMOKE = "recipe=smoke"
AFTER_PPO = {"ppo", "evaluate_ppo", "drift_ppo", "gate_ppo", "report"}
AFTER_DPO = {"dpo", "evaluate_dpo", "drift_dpo", "gate_dpo", "report"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> ClonedPackage:
    made = ClonedPackage(tmp_path_factory.mktemp("clone"))
    made.commit_all(SMOKE)
    return made


@pytest.mark.parametrize(
    ("file", "old", "new", "rerun"),
    [
        ("train/config/dpo.py", "Pairs made of a K-ranked group.", "Which pairs a group makes.", set()),
        ("train/methods/ppo_trainer.py", "import torch\n", "import torch  # a comment\n", set()),
        ("train/sft.py", "    tokenizer = begin(context,", "\n\n    tokenizer = begin(context,", set()),
        ("stage/wandb/tables.py", "import json\n", "import json\nEDITED = 1\n", set()),
        (
            "stage/errors.py",
            "from __future__ import annotations\n",
            "from __future__ import annotations\nE = 1\n",
            set(),
        ),
        ("train/methods/ppo_trainer.py", "import torch\n", "import torch\nEDITED = 1\n", AFTER_PPO),
        ("train/rollouts/__init__.py", "", "EDITED = 1\n", AFTER_PPO),
        ("train/config/dpo.py", "default=0.1, gt=0", "default=0.2, gt=0", AFTER_DPO),
        ("evaluate/page/report.css.j2", "--blue: #0072b2;", "--blue: #0000ff;", {"report"}),
    ],
)
def test_an_edit_runs_again_what_it_can_change_and_no_more(
    clone: ClonedPackage, file: str, old: str, new: str, rerun: set[str]
) -> None:
    path = clone.package / file
    before = path.read_text(encoding="utf-8")
    try:
        if old:
            clone.edit(file, old, new)
        else:
            path.write_text(new)
        states = clone.states(SMOKE)
    finally:
        path.write_text(before, encoding="utf-8")
    assert {stage for stage, state in states.items() if state != "cached"} == rerun


def test_a_renamed_stage_is_not_run_again(tmp_path: Path) -> None:
    clone = ClonedPackage(tmp_path)
    recipe = tmp_path / "own" / "recipe"
    recipe.mkdir(parents=True)
    text = (
        "# @package _global_\ndefaults:\n  - override /pipeline: null\n  - _self_\nname: two\nstages:\n"
        "  first: {run: data.demo}\n"
        "  rows: {run: data.curate, inputs: {sources: first},"
        " with: {record_type: demonstration, sources: [{name: a, file: demonstrations.jsonl}]}}\n"
    )
    (recipe / "two.yaml").write_text(text)
    clone.commit_all("recipe=two", config_dir="own")
    overrides = ["recipe=two", "--config-dir", "own"]
    assert clone.states(*overrides) == {"first": "cached", "rows": "cached"}
    (recipe / "two.yaml").write_text(text.replace("first", "generated").replace("rows:", "curated:"))
    assert clone.states(*overrides) == {"generated": "cached", "curated": "cached"}
