"""`posttrain generate` where one of several samples is given back, or what it says is checked; in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import build_model, build_reward_model
from saying_model import build_saying_model

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation
from posttrain.models.load import load_policy, load_reward_model
from posttrain.sample import respond
from posttrain.sample.choose.answers import text_answer
from posttrain.sample.config.sampling import SamplingConfig, sampling_params
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.score import by_reward as by_reward_model
from posttrain.stage.schema import build

DRAWS: dict[str, Any] = {"max_tokens": 5, "temperature": 1.0, "seed": 3}
PROMPTS = ["the dog runs", "red blue", "green"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("choices"), shape={"max_position_embeddings": 1024})


@pytest.fixture
def rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what answers a file of prompts, with the rows that it wrote."""
    lines = [json.dumps({"prompt": prompt, "reference": prompt}) + "\n" for prompt in PROMPTS]
    (tmp_path / "in.jsonl").write_text("".join(lines))

    def answer(sampling: dict[str, Any] = DRAWS, **asking: Any) -> list[dict[str, Any]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}.jsonl"
        files = {"file": str(tmp_path / "in.jsonl"), "out": str(out)}
        assert ask(monkeypatch, model, sampling, files | asking) == 0
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return answer


def ask(monkeypatch: pytest.MonkeyPatch, model: Path, sampling: dict[str, Any], asking: dict[str, Any]) -> int:
    words = ["respond", "--model", str(model), "--sampling", json.dumps(sampling), "--asking", json.dumps(asking)]
    monkeypatch.setattr(sys, "argv", words)
    return respond.main()


def test_the_best_is_the_one_of_the_highest_score(rows: Any, model: Path, tmp_path: Path) -> None:
    everyone = [row["responses"] for row in rows(DRAWS | {"num_samples": 4})]
    surest = [max(own, key=lambda one: one["mean_logprob"]) for own in everyone]
    best = rows(best_of=4)
    assert [row["responses"] for row in best] == [[one] for one in surest]
    assert [row["choice"]["score"] for row in best] == [one["mean_logprob"] for one in surest]
    assert [row["choice"]["tokens"] for row in best] == [sum(one["tokens"] for one in own) for own in everyone]
    places = [row["choice"]["index"] for row in best]
    assert [own[place] for own, place in zip(everyone, places, strict=True)] == surest and any(places)
    voted = rows(best_of=4, by="vote")
    for row, own in zip(voted, everyone, strict=True):
        answers = [text_answer(one["text"]) for one in own]
        assert row["choice"]["score"] * 4 == max(map(answers.count, answers))
        assert row["responses"] == [own[row["choice"]["index"]]]


def test_a_reward_model_and_a_verifier_choose(
    rows: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = build_reward_model(tmp_path, model)
    everyone = [row["responses"] for row in rows(DRAWS | {"num_samples": 4})]
    by_reward = rows(best_of=4, by="reward", reward=str(reward))
    tokenizer, judge = load_tokenizer(model), load_reward_model(reward).eval()
    for prompt, row, own in zip(PROMPTS, by_reward, everyone, strict=True):
        assert row["responses"] == [own[row["choice"]["index"]]]
        (ids,) = encode_prompts(tokenizer, [Conversation([{"role": "user", "content": prompt}])])
        params = sampling_params(build(SamplingConfig, DRAWS | {"num_samples": 4}, "sampling"), 0)
        samples = Sampler(load_policy(model).eval(), tokenizer).generate([ids], params)
        (scores,) = by_reward_model(judge, tokenizer.pad_token_id, 8)([ids], samples)
        assert row["choice"]["score"] == pytest.approx(max(scores))
    (tmp_path / "judges.py").write_text("def longest(prompt, response, reference):\n    return len(response)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    longest = rows(best_of=4, by="verifier", scorer="judges:longest")
    assert [row["choice"]["score"] for row in longest] == [max(len(one["text"]) for one in own) for own in everyone]


def test_draws_end_with_the_first_that_is_valid(rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everyone = [row["responses"] for row in rows(DRAWS | {"num_samples": 4})]
    found = rows(DRAWS | {"num_samples": 2}, first_valid=4, scorer="complied")
    assert [row["responses"][0] for row in found] == [own[0] for own in everyone]
    assert [row["attempt"]["rounds"] for row in found] == [1, 1, 1]
    (tmp_path / "schema").write_text('{"type": "object", "required": ["name"]}')
    none = rows(DRAWS | {"num_samples": 2}, first_valid=4, constraint=["schema", str(tmp_path / "schema")])
    assert [(row["responses"], row["attempt"]["samples"], row["attempt"]["valid"]) for row in none] == [
        ([], 4, False)
    ] * 3
    assert capsys.readouterr().out.endswith("; 3 without a valid response\n")


def test_what_passages_do_not_support_is_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_saying_model(tmp_path, "“the dog runs”<|im_end|>", "“", "”")
    (tmp_path / "in").write_text(
        '{"prompt": "red", "passages": ["a cat", "Here the dog runs."]}\n{"prompt": "red", "passages": ["a cat"]}\n'
    )
    files = {"file": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    greedy = {"temperature": 0.0, "max_tokens": 8}
    assert ask(monkeypatch, model, greedy, files | {"cite": ""}) == 0
    found, unfounded = (json.loads(line)["responses"][0] for line in (tmp_path / "out").read_text().splitlines())
    assert found["text"] == "“the dog runs”" and found["cited"] and found["grounded"] == 1.0
    place = {"quote": "the dog runs", "passage": 1, "start": 5, "end": 17, "exact": True}
    assert found["quotes"] == [place] and "withheld" not in found
    assert (unfounded["text"], unfounded["withheld"], unfounded["cited"]) == ("", "“the dog runs”", False)
    assert unfounded["unsupported"] == ["the dog runs"]
    assert capsys.readouterr().out.endswith("; 1 responses withheld that the passages do not support\n")
    for passage, said in (
        ("See the dog runs", '"the dog runs": passage 1, characters 5 to 16'),
        ("a cat", "(withheld"),
    ):
        (tmp_path / "passages").write_text(f"{passage}\n\nanother")
        assert ask(monkeypatch, model, greedy, {"prompt": "red", "cite": str(tmp_path / "passages")}) == 0
        assert said in capsys.readouterr().out


def test_the_ladder_shows_each_rung_with_its_figures(
    rows: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema").write_text('{"enum": ["red", "green"]}')
    asking = {"ladder": True, "constraint": ["schema", str(tmp_path / "schema")]}
    assert ask(monkeypatch, model, DRAWS, asking | {"prompt": "red", "reference": '"red"'}) == 0
    shown = capsys.readouterr().out
    assert "[grammar] valid\n" in shown and shown.count("\n| ") == 5
    (tmp_path / "in.jsonl").write_text('{"prompt": "red"}\n{"prompt": "blue"}\n')
    for row in rows(**asking):
        assert [rung["rung"] for rung in row["rungs"]] == ["bare", "prompt", "repair", "grammar"]
        assert row["rungs"][-1]["valid"] and json.loads(row["rungs"][-1]["text"]) in ("red", "green")
    assert "| grammar | 100.0% | 100.0% | – |" in capsys.readouterr().out
