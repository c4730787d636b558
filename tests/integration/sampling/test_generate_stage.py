"""The stage sample.generate: its demonstrations are the sampler's responses, and survive the way to token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from build_artifacts import build_model, build_reward_model, commit_artifact

from posttrain.data.config.curate import CurateConfig
from posttrain.data.config.tokenize import TokenizeConfig
from posttrain.data.curate import run as curate
from posttrain.data.messages import Message
from posttrain.data.records import Prompt, write_dataset
from posttrain.data.tokenize import run as tokenize
from posttrain.sample import generate
from posttrain.sample.config.generate import GenerateConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.schema import build
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

LABELS = ["red", "blue dog", "one"]
WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog"]
PROMPTS = 8


def run(function: Any, config: Any, inputs: dict[str, Path], output: Path) -> StageResult:
    """Run a stage function in this process; its work lies beside its output and is kept."""
    output.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f"{output.name}-work")
    work.mkdir(exist_ok=True)
    spec = StageSpec("g", "generate", "test", "0" * 64, "", {}, {}, {}, "", "", "", 3, Distributed(), Tracking())
    result: StageResult = function(config, Context(spec, inputs, output, work, NullTracker(), main_process=True))
    return result


def config_of(**knobs: Any) -> GenerateConfig:
    sampling = {"num_samples": 4, "max_tokens": 8} | knobs.pop("sampling", {})
    structure = knobs.pop("structure", {"choices": LABELS})
    values = {"sampling": sampling, "structure": structure, "batch_size": 2, **knobs}
    return build(GenerateConfig, values, "sample.generate")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("generate")
    items = [
        Prompt(
            id=f"p/{number}",
            source="p",
            license="MIT",
            language="en",
            task="labels",
            split=("train", "eval")[number % 4 == 0],
            prompt=[Message(role="user", content=f"{WORDS[number]} runs")],
            reference="|".join(LABELS),
        )
        for number in range(PROMPTS)
    ]
    directory = root / "artifacts" / "prompts-0001"
    directory.mkdir(parents=True)
    write_dataset(directory, items, Prompt)
    return {"model": build_model(root), "prompts": commit_artifact(directory, "dataset", "prompts")}


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()]


def answers(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        ((role, text),) = [(turn["role"], turn["content"]) for turn in row["completion"]]
        assert role == "assistant"
        yield text


def test_every_response_is_a_demonstration_with_its_provenance(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = run(generate.run, config_of(), inputs, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    accounting = json.loads((tmp_path / "out" / "accounting.json").read_text(encoding="utf-8"))
    assert accounting["samples"]["in"] == 4 * PROMPTS == len(rows) + sum(accounting["samples"]["dropped"].values())
    assert accounting["samples"]["dropped"].keys() == {"repeated"}
    assert len({row["id"] for row in rows}) == len(rows) > PROMPTS
    assert set(answers(rows)) == set(LABELS)
    assert {row["license"] for row in rows} == {"MIT"} and result.licenses == ["MIT"]
    assert {row["generator"] for row in rows} == {result.facts["generator"]}
    assert (result.metrics["responses"], result.metrics["prompts"]) == (len(rows), PROMPTS)


def test_what_was_generated_is_curated_and_tokenised_on_the_side_of_its_prompt(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(generate.run, config_of(choose="vote"), inputs, tmp_path / "out")
    values = {"record_type": "demonstration", "sources": [{"name": "made", "file": "demonstrations.jsonl"}]}
    given = {"sources": tmp_path / "out", "prompts": inputs["prompts"]}
    result = run(curate, build(CurateConfig, values, "data.curate"), given, tmp_path / "curated")
    assert result.metrics["rows_kept"] == PROMPTS
    run(tokenize, TokenizeConfig(), {"model": inputs["model"], "data": tmp_path / "curated"}, tmp_path / "tokens")
    held = pq.read_table(tmp_path / "curated" / "eval.parquet").to_pylist()
    assert sorted(row["id"] for row in held) == ["made/p/0", "made/p/4"]
    assert len(pq.read_table(tmp_path / "tokens" / "train.parquet")) == PROMPTS - 2


@pytest.mark.parametrize("choose", ["first_valid", "verifier", "vote", "logprob"])
def test_one_response_to_a_prompt_is_chosen(inputs: dict[str, Path], tmp_path: Path, choose: str) -> None:
    result = run(generate.run, config_of(choose=choose, min_score=0.0, scorer="choice"), inputs, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"p/{number}" for number in (1, 2, 3, 5, 6, 7, 0, 4)]
    assert sum(result.facts["accounting"]["samples"]["dropped"].values()) == 3 * PROMPTS
    if choose == "verifier":  # which calls the first label right
        assert all((text == "red") == (row["score"] == 1) for text, row in zip(answers(rows), rows, strict=True))
        assert result.metrics["score"] > 0.5


def test_responses_that_the_verifier_refuses_are_no_demonstrations(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = run(generate.run, config_of(min_score=1.0, scorer="choice"), inputs, tmp_path / "out")
    assert set(answers(rows_of(tmp_path / "out"))) == {"red"}
    assert result.metrics["dropped_low_score"] > 0
    assert result.metrics["prompts_no_response"] + result.metrics["prompts"] == PROMPTS
    with pytest.raises(
        PosttrainError, match=r"no response is left of 8 prompts, 0 of them too long; dropped: .*low_score"
    ):
        run(generate.run, config_of(min_score=2.0, scorer="choice"), inputs, tmp_path / "none")


def test_a_reward_model_chooses(inputs: dict[str, Path], tmp_path: Path) -> None:
    given = inputs | {"reward_model": build_reward_model(tmp_path, inputs["model"])}
    run(generate.run, config_of(choose="reward"), given, tmp_path / "out")
    assert len({row["score"] for row in rows_of(tmp_path / "out")}) > 1
    for wrong, knob in ((inputs, "reward"), (given, "vote")):
        with pytest.raises(UsageError, match=r"choose=reward and inputs\.reward_model go together"):
            run(generate.run, config_of(choose=knob), wrong, tmp_path / "wrong")


def test_a_killed_stage_goes_on_prompt_by_prompt_to_the_same_bytes(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = Sampler.generate

    def counting(self: Sampler, prompts: Any, *given: Any, **more: Any) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return real(self, prompts, *given, **more)

    run(generate.run, config_of(), inputs, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "generate", counting)
        with pytest.raises(KeyboardInterrupt):
            run(generate.run, config_of(), inputs, tmp_path / "cut")
        assert asked == [1, 1, 1]
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            run(generate.run, config_of(), inputs, tmp_path / "cut")
    run(generate.run, config_of(), inputs, tmp_path / "cut")
    journal = (tmp_path / "cut-work" / "responses.0.jsonl").read_text(encoding="utf-8")
    assert [len(json.loads(line)[0]) for line in journal.splitlines()] == [1] * PROMPTS
    for name in ("demonstrations.jsonl", "accounting.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_prompts_without_room_are_counted_and_broken_schemas_cost_no_model(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(PosttrainError, match="no response is left of 8 prompts, 8 of them too long"):
        run(generate.run, config_of(sampling={"max_tokens": 100_000}), inputs, tmp_path / "out")
    (tmp_path / "schema.json").write_text("{")
    config = config_of(structure={"schema": str(tmp_path / "schema.json")})
    with pytest.raises(UsageError, match=r"sample\.generate\.structure\.schema: .*not JSON"):
        run(generate.run, config, inputs | {"model": tmp_path / "none"}, tmp_path / "bad")
