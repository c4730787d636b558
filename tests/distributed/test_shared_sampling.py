"""Stages that sample on two ranks make, byte for byte, what they make on one; a rank that is killed costs nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import build_demonstrations, build_model, build_reward_model, commit_artifact
from forked_ranks import distributed, logs_of, start_ranks, train, wait_for, work_order

from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem, write_dataset
from posttrain.stage.files import sha256_file

WORDS = ["red", "blue", "one", "two", "three", "four", "five", "six", "seven", "cat", "dog", "bird"]
SAMPLED = {"num_samples": 4, "temperature": 1.0, "max_new_tokens": 6, "batch_size": 4}
KNOBS: dict[str, dict[str, Any]] = {
    "sample.rank": SAMPLED,
    "sample.generate": {
        "sampling": {"num_samples": 4, "max_tokens": 6},
        "structure": {"choices": ["red", "blue dog", "one"]},
        "choose": "reward",
        "batch_size": 4,
    },
    "evaluate.policy": SAMPLED | {"suite": {"options": {"scorer": "choice_logprob", "label": "options"}, "same": {}}},
    "evaluate.best_of_n": SAMPLED | {"resamples": 100},
}
MADE = {
    "sample.rank": ["comparisons.jsonl"],
    "sample.generate": ["demonstrations.jsonl", "accounting.json"],
    "evaluate.policy": ["items.parquet", "summary.json"],
    "evaluate.best_of_n": ["samples.parquet", "curve.json"],
}


class Bench:
    """The inputs of the stages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root)
        self.reward = build_reward_model(root, self.model)
        self.data = build_demonstrations(root, self.model)
        directory = root / "artifacts" / "items-0001"
        directory.mkdir(parents=True)
        write_dataset(directory, [item(number) for number in range(24)], EvaluationItem)
        self.items = commit_artifact(directory, "dataset", "items")

    def inputs(self, stage: str) -> dict[str, Path]:
        of_stage = {
            "sample.rank": {"prompts": self.items},
            "sample.generate": {"reward_model": self.reward, "prompts": self.items},
            "evaluate.policy": {"data": self.data, "items": self.items},
            "evaluate.best_of_n": {"reward_model": self.reward, "items": self.items},
        }
        return {"model": self.model, **of_stage[stage]}

    def run(self, stage: str, processes: int) -> Path:
        output = self.root / "artifacts" / f"{stage}_{processes}"
        if not output.exists():
            kind = "ddp" if processes > 1 else "single"
            train(stage, output, self.inputs(stage), distributed(kind, processes), **KNOBS[stage])
        return output


def item(number: int) -> EvaluationItem:
    prompt = [Message(role="user", content=" ".join(WORDS[number % 5 : number % 5 + 2 + number % 4]) + f" {number}")]
    provenance = {"id": f"item/{number}", "source": "s", "task": "t", "language": "en", "split": "eval"}
    return EvaluationItem(**provenance, prompt=prompt, reference="red|blue", scorer="choice")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("stage", KNOBS)
def test_two_ranks_make_what_one_makes(bench: Bench, stage: str) -> None:
    one, two = bench.run(stage, 1), bench.run(stage, 2)
    for name in MADE[stage]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_rank_that_was_killed_costs_no_prompt_twice(bench: Bench) -> None:
    stage, output = "sample.rank", bench.root / "artifacts" / "killed"
    spec = work_order(stage, output, bench.inputs(stage), distributed("ddp", 2), **KNOBS[stage])
    journal = output.with_name("killed.work") / "samples.1.jsonl"
    children = start_ranks(stage, spec, 2)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(children[1], signal.SIGKILL)
    assert wait_for(children)[1] == -signal.SIGKILL, logs_of(spec)
    before = journal.read_bytes()
    stamp = sha256_file(journal)
    spec = work_order(stage, output, bench.inputs(stage), distributed("single", 1), **KNOBS[stage])
    kept = output.with_name("kept.jsonl")
    os.link(journal, kept)  # the stage clears its work away when it is done
    assert wait_for(start_ranks(stage, spec, 1)) == [0], logs_of(spec)
    assert sha256_file(kept) == stamp and before
    assert (output / "comparisons.jsonl").read_bytes() == (bench.run(stage, 1) / "comparisons.jsonl").read_bytes()
