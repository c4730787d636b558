"""The stage evaluate.best_of_n on tiny models: its files agree with each other and with the parts they are made of."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from build_artifacts import build_model, commit_artifact, recommitted, run_stage
from transformers import LlamaConfig, LlamaForSequenceClassification

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import preference_score, score
from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem, prompt_of, write_dataset
from posttrain.models.load import load_policy
from posttrain.sample.choose.curves import best_of_k, majority_at_k, pass_at_k
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.artifact import read_manifest

KNOBS: dict[str, Any] = {"num_samples": 6, "max_new_tokens": 5, "batch_size": 16, "resamples": 100, "seed": 3}


def build_reward_model(root: Path, model: Path, name: str = "reward-0001") -> Path:
    directory = root / "artifacts" / name
    config = LlamaConfig.from_pretrained(model, num_labels=1, reward_mean=0.0, reward_std=1.0)
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(str(directory))
    load_tokenizer(model).save_pretrained(str(directory))
    return commit_artifact(directory, "reward_model", "reward")


def build_items(root: Path) -> tuple[Path, list[EvaluationItem]]:
    words = ("red", "blue", "green", "dog", "cat", "one", "two", "three")
    items = [
        EvaluationItem(
            id=f"item/{number}",
            source="demo",
            task=("choice", "number")[number % 2],
            language="en",
            split="eval",
            prompt=[Message(role="user", content=f"{word} runs")],
            reference="a|b|c" if number % 2 == 0 else "1",
            scorer=("choice", "number")[number % 2],
            ideal="a" if number % 2 == 0 else None,
        )
        for number, word in enumerate(words)
    ]
    directory = root / "artifacts" / "items-0001"
    directory.mkdir(parents=True)
    write_dataset(directory, items, EvaluationItem)
    return commit_artifact(directory, "dataset", "items"), items


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[EvaluationItem]]:
    root = tmp_path_factory.mktemp("best_of_n")
    model = build_model(root)
    directory, items = build_items(root)
    return {"model": model, "reward_model": build_reward_model(root, model), "items": directory}, items


@pytest.fixture(scope="module")
def output(inputs: tuple[dict[str, Path], list[EvaluationItem]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "best-of-n"
    run_stage("evaluate.best_of_n", directory, inputs[0], **KNOBS)
    return directory


def test_samples_are_the_samplers_and_scored(
    inputs: tuple[dict[str, Path], list[EvaluationItem]], output: Path
) -> None:
    artifacts, items = inputs
    rows = pq.read_table(output / "samples.parquet").to_pylist()
    sampler = Sampler(load_policy(artifacts["model"]).eval(), load_tokenizer(artifacts["model"]))
    prompts = encode_prompts(sampler.tokenizer, [prompt_of(item) for item in items])
    params = [SamplingParams(max_tokens=5, num_samples=6, seed=derived_seed(3, i.id)) for i in items]
    for row, entry, own in zip(rows, items, sampler.generate(prompts, params), strict=True):
        assert row["responses"] == [sample.text for sample in own]
        assert row["correct"] == [score(entry.scorer, text, entry.reference) for text in row["responses"]]
        assert row["logprobs"] == pytest.approx([sum(s.logprobs) / len(s.logprobs) for s in own], abs=1e-4)
        if entry.ideal is None:
            assert row["preference"] is None
        else:
            assert row["preference"] == [
                preference_score(text, entry.reference, entry.scorer, entry.ideal) for text in row["responses"]
            ]
    assert len({reward for row in rows for reward in row["rewards"]}) > 20


def test_the_curve_is_that_of_the_samples(output: Path) -> None:
    rows = pq.read_table(output / "samples.parquet").to_pylist()
    curve = json.loads((output / "curve.json").read_text(encoding="utf-8"))
    assert curve["sizes"] == [1, 2, 4, 6]
    correct, preference = curve["curves"]["correct"], curve["curves"]["preference"]
    for place, k in enumerate(curve["sizes"]):
        means = {
            "oracle": [pass_at_k(6, int(sum(row["correct"])), k) for row in rows],
            "reward": [best_of_k(row["rewards"], row["correct"], k) for row in rows],
            "logprob": [best_of_k(row["logprobs"], row["correct"], k) for row in rows],
            "majority": [majority_at_k(row["answers"], row["correct"], k) for row in rows],
        }
        for selector, of_items in means.items():
            assert correct[selector][place]["value"] == pytest.approx(sum(of_items) / 8)
        judged = [best_of_k(row["rewards"], row["preference"], k) for row in rows if row["preference"] is not None]
        assert preference["reward"][place]["value"] == pytest.approx(sum(judged) / 4)


def test_the_table_and_figures_are_there(output: Path) -> None:
    curve = json.loads((output / "curve.json").read_text(encoding="utf-8"))
    with (output / "curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4 * 2
    for row in rows:
        point = curve["curves"][row["measure"]][row["selector"]][curve["sizes"].index(int(row["samples"]))]
        assert float(row["value"]) == pytest.approx(point["value"], abs=1e-4)
        assert float(row["gain_high"]) == pytest.approx(point["gain"]["high"], abs=1e-4)
    manifest = read_manifest(output)
    assert manifest.kind == "selection"
    assert {"curve.svg", "over_optimisation.svg", "reliability.svg", "risk_coverage.svg"} <= set(manifest.files)
    assert manifest.metrics["one"] == pytest.approx(curve["curves"]["correct"]["majority"][0]["value"])


def test_a_reward_model_of_another_tokenizer_is_refused(
    inputs: tuple[dict[str, Path], list[EvaluationItem]], tmp_path: Path
) -> None:
    artifacts, _ = inputs
    other = build_model(tmp_path, name="other-0001")
    data = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"][-1]["content"] = "<|else|>"
    mixed = build_reward_model(tmp_path, other, "reward-0002")
    (mixed / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    given = {**artifacts, "reward_model": recommitted(mixed)}
    done = run_stage("evaluate.best_of_n", tmp_path / "out", given, expect=2, **KNOBS)
    assert "differs in tokenizer from the others; train all from one base" in done.stderr
