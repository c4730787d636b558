"""The stage sample.rank: its comparisons are the sampler's responses, ranked, and survive the way to token ids."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from build_artifacts import build_model, commit_artifact
from saying_model import words_tokenizer

from posttrain.data import openings
from posttrain.data.chat.pieces import encode_prompts, response_text
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import ranks, score
from posttrain.data.config.curate import CurateConfig
from posttrain.data.config.openings import OpeningsConfig
from posttrain.data.config.tokenize import TokenizeConfig
from posttrain.data.curate import run as curate
from posttrain.data.messages import Conversation, Message
from posttrain.data.records import Comparison, EvaluationItem, Prompt, Record, read_records, write_dataset
from posttrain.data.tokenize import run as tokenize
from posttrain.models.load import load_policy
from posttrain.sample import rank
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.rank import RankConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.judges import build_judge
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.schema import build
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker
from posttrain.train import base
from posttrain.train.config.base import BaseConfig

STORIES = Path(__file__).resolve().parents[3].parent / "shared" / "models" / "stories260k"
KNOBS: dict[str, Any] = {"num_samples": 4, "max_new_tokens": 6, "batch_size": 16}


def vowels(messages: list[dict[str, str]], response: str, reference: str | None) -> float:
    """A judge of few values, so that there are ties."""
    return min(3, sum(response.count(vowel) for vowel in "aeiou")) + 10 * int(reference or 0)


def infinite(messages: list[dict[str, str]], response: str, reference: str | None) -> float:
    return math.inf


def run(function: Any, config: Any, inputs: dict[str, Path], output: Path, seed: int = 0) -> StageResult:
    """Run a stage function in this process."""
    output.mkdir(parents=True)
    spec = StageSpec("rank", "rank", "test", "0" * 64, "", {}, {}, {}, "", "", "", seed, Distributed(), Tracking())
    result: StageResult = function(config, Context(spec, inputs, output, output, NullTracker(), main_process=True))
    return result


def rows_of(output: Path) -> list[dict[str, Any]]:
    lines = (output / "comparisons.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def dataset(root: Path, records: list[Any], record_type: type[Record]) -> Path:
    directory = root / "artifacts" / f"{record_type.__name__.lower()}-0001"
    directory.mkdir(parents=True)
    write_dataset(directory, records, record_type)
    return commit_artifact(directory, "dataset", "prompts")


def prompt(number: int, record_type: Any = Prompt, **fields: Any) -> Any:
    turns = [Message(role="user", content=f"the {('red', 'blue', 'green')[number % 3]} dog {number}")]
    common = {"id": f"p/{number}", "source": "p", "license": "MIT", "language": "en", "task": "dogs"}
    return record_type(**common, prompt=turns, split=("train", "eval")[number % 2], **fields)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rank")
    prompts = dataset(root, [prompt(number, reference=str(number % 2)) for number in range(6)], Prompt)
    return {"model": build_model(root), "prompts": prompts}


@pytest.fixture(scope="module")
def ranked(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    output = tmp_path_factory.mktemp("ranked") / "out"
    return output, run(rank.run, RankConfig(function=f"{__name__}:vowels", **KNOBS), inputs, output, seed=3)


def test_the_samplers_responses_are_ranked_with_ties(inputs: dict[str, Path], ranked: tuple[Path, StageResult]) -> None:
    tokenizer = load_tokenizer(inputs["model"])
    sampler = Sampler(load_policy(inputs["model"]).eval(), tokenizer)
    rows = rows_of(ranked[0])
    assert sorted(row["id"] for row in rows) == [f"p/{number}" for number in range(6)]
    for row in rows:
        (ids,) = encode_prompts(tokenizer, [Conversation(row["prompt"])])
        params = SamplingParams(max_tokens=6, num_samples=4, seed=derived_seed(3, row["id"]))
        (samples,) = sampler.generate([ids], params)
        assert row["responses"] == [response_text(tokenizer, ids, sample.token_ids) for sample in samples]
        assert row["ended"] == [sample.finish_reason == "stop" for sample in samples]
        reference = row["id"][-1] in "135"
        assert row["scores"] == [vowels([], response, str(int(reference))) for response in row["responses"]]
        assert row["ranks"] == ranks(row["scores"])
        assert (row["annotator"], row["license"], row["task"]) == (f"{__name__}:vowels", "MIT", "dogs")
    assert any(len(set(row["ranks"])) < 4 for row in rows)
    scores = [value for row in rows for value in row["scores"]]
    assert ranked[1].metrics["score"] == pytest.approx(sum(scores) / len(scores))
    assert ranked[1].metrics["best_score"] == pytest.approx(sum(max(row["scores"]) for row in rows) / 6)


def test_the_seed_decides_every_byte(inputs: dict[str, Path], ranked: tuple[Path, StageResult], tmp_path: Path) -> None:
    for name, seed, batch_size in (("same", 3, 5), ("other", 4, 16)):
        config = RankConfig(function=f"{__name__}:vowels", **KNOBS | {"batch_size": batch_size})
        run(rank.run, config, inputs, tmp_path / name, seed)
    first, same, other = (
        (path / "comparisons.jsonl").read_bytes() for path in (ranked[0], tmp_path / "same", tmp_path / "other")
    )
    assert first == same
    assert first != other


def test_curation_drops_what_ties_and_keeps_the_rest(ranked: tuple[Path, StageResult], tmp_path: Path) -> None:
    values = {"record_type": "comparison", "sources": [{"name": "ranked", "file": "comparisons.jsonl"}]}
    values["on_bad_row"] = "quarantine"  # a model of random weights says NUL now and then
    result = run(curate, build(CurateConfig, values, "data.curate"), {"sources": ranked[0]}, tmp_path / "curated")
    kept = [
        record
        for split in ("train", "eval")
        for record in read_records(tmp_path / f"curated/{split}.parquet", Comparison)
    ]
    sound = [row for row in rows_of(ranked[0]) if not any("\0" in response for response in row["responses"])]
    useful = [row for row in sound if len(set(row["ranks"])) > 1]
    assert len(kept) == len(useful) == result.metrics["rows_kept"]
    assert {record.id: record.annotator for record in kept} == {
        f"ranked/{row['id']}": f"{__name__}:vowels" for row in useful
    }


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, r"sample\.rank\.scorer: prompt p/\d names no scorer; give one, or a function"),
        ({"scorer": "sentimant"}, "scorer 'sentimant': unknown; .*did you mean 'sentiment'"),
        ({"scorer": "number"}, r"prompt p/\d has no reference, which number judges by; give references"),
        ({"function": "no.such:judge"}, r"sample\.rank\.function: 'no.such:judge'"),
    ],
)
def test_what_cannot_judge_is_one_line_before_a_model_loads(
    knobs: dict[str, str], message: str, tmp_path: Path
) -> None:
    prompts = dataset(tmp_path, [prompt(number) for number in range(2)], Prompt)
    with pytest.raises(UsageError, match=message):
        run(rank.run, RankConfig(**knobs, **KNOBS), {"prompts": prompts, "model": tmp_path / "none"}, tmp_path / "out")


def test_scores_that_are_not_finite_end_the_stage(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="24 of 24 scores are not finite"):
        run(rank.run, RankConfig(function=f"{__name__}:infinite", **KNOBS), inputs, tmp_path / "out")


def test_items_bring_their_own_scorers(inputs: dict[str, Path], tmp_path: Path) -> None:
    items = [prompt(number, EvaluationItem, reference="one", scorer="sentiment") for number in range(2)]
    given = {"model": inputs["model"], "prompts": dataset(tmp_path, items, EvaluationItem)}
    run(rank.run, RankConfig(**KNOBS), given, tmp_path / "out")
    for row in rows_of(tmp_path / "out"):
        assert row["annotator"] == "sentiment"
        assert row["scores"] == [score("sentiment", response, "") for response in row["responses"]]


def test_openings_are_continued_and_their_continuations_become_the_same_tokens(tmp_path: Path) -> None:
    """The way of recipe=sentiment up to its tokens, on the real model."""
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is absent")
    run(openings.run, OpeningsConfig(num_prompts=20, num_items=2), {}, tmp_path / "openings")
    values = {"record_type": "prompt", "sources": [{"name": "o", "file": "openings.jsonl"}], "eval_fraction": 0}
    run(curate, build(CurateConfig, values, "data.curate"), {"sources": tmp_path / "openings"}, tmp_path / "prompts")
    model = tmp_path / "artifacts" / "base-0001"
    run(base.run, BaseConfig(path=str(STORIES), chat_template="verbatim", pad_token="<unk>"), {}, model)
    assert (model / "model.safetensors").read_bytes() == (STORIES / "model.safetensors").read_bytes()
    commit_artifact(model, "model", "base")
    inputs = {"model": model, "prompts": tmp_path / "prompts"}
    run(rank.run, RankConfig(scorer="sentiment", max_new_tokens=24), inputs, tmp_path / "ranked")

    values |= {"record_type": "comparison", "sources": [{"name": "r", "file": "comparisons.jsonl"}]}
    run(curate, build(CurateConfig, values, "data.curate"), {"sources": tmp_path / "ranked"}, tmp_path / "comparisons")
    run(tokenize, TokenizeConfig(), {"model": model, "data": tmp_path / "comparisons"}, tmp_path / "tokens")
    tokenizer = load_tokenizer(model)
    sampler = Sampler(load_policy(model).eval(), tokenizer)
    sampled, equal = 0, 0
    for row in pq.read_table(tmp_path / "tokens/train.parquet").to_pylist():
        params = SamplingParams(max_tokens=24, num_samples=4, seed=derived_seed(0, row["id"].removeprefix("r/")))
        (samples,) = sampler.generate([row["prompt_ids"]], params)
        assert row["prompt_ids"][0] == tokenizer.bos_token_id
        for ids, sample in zip(row["responses_ids"], samples, strict=True):
            assert tokenizer.decode(ids) == tokenizer.decode(sample.token_ids)
            sampled, equal = sampled + 1, equal + (ids == sample.token_ids)
    assert equal == sampled >= 76


def said(text: str, reasoning: str = "", finish: Any = "stop", answered: bool = True) -> Sample:
    return Sample([0], [0.0], [0.0], finish, text, 0.0, reasoning, len(reasoning), answered, f"<think>{reasoning}")


def judged(*samples: Sample) -> rank.Ranked:
    """Return the samples of one prompt, ranked by how many numbers their answers have right."""
    judge = build_judge("sample.rank", None, "number", [prompt(0, reference="5")])
    return rank.rank_samples(words_tokenizer(), judge, prompt(0, reference="5"), [1], samples)


def test_answers_are_judged_and_the_reasoning_is_part_of_what_is_compared() -> None:
    group = judged(said("5", "4 or 5"), said("4", "5"), said("", "5", answered=False), said("5", "cut", "length"))
    row = rank.comparison_row(group, "number")
    assert row["responses"] == [
        f"<think>\n{t}\n</think>\n\n{a}" for t, a in (("4 or 5", "5"), ("5", "4"), ("cut", "5"))
    ]
    assert (row["ranks"], row["ended"]) == ([1, 3, 1], [True, True, False])


def test_responses_without_an_answer_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    open_ended = said("", "5", answered=False)
    groups = [judged(said("5"), said("4")), judged(said("5"), open_ended)]
    samples = [[said("5"), said("4")], [said("5"), open_ended]]
    assert rank.require_comparisons(groups, samples) == groups[:1]
    assert caplog.messages == [
        "1 of 4 responses ended within their reasoning and are left out, and with them 1 of 2 prompts; "
        "raise max_new_tokens"
    ]
    with pytest.raises(PosttrainError, match="no prompt has two answers to compare; raise max_new_tokens"):
        rank.require_comparisons(groups[1:], samples[1:])
