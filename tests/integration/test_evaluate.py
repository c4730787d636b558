"""The evaluation stages on tiny models, against the same figures worked out one row at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from build_artifacts import build_comparisons, build_demonstrations, build_model, commit_artifact, run_stage
from transformers import LlamaConfig, LlamaForSequenceClassification

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation, Message
from posttrain.data.records import EvaluationItem, write_dataset
from posttrain.evaluate import policy, reward
from posttrain.evaluate.config.policy import PolicyEvaluationConfig
from posttrain.evaluate.config.reward import RewardEvaluationConfig
from posttrain.evaluate.measure.heldout import row_losses
from posttrain.evaluate.measure.item_scores import read_items
from posttrain.models.load import load_policy, load_reward_model
from posttrain.models.processes import Rank
from posttrain.sample.many import generate
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

PROMPTS = [
    Conversation([{"role": "user", "content": text}])
    for text in ("red blue", "one two three four five six seven cat dog bird", "sings", "the dog runs here and there")
]


class Bench:
    """A policy, a reward model and their held-out data."""

    def __init__(self, root: Path) -> None:
        self.model = build_model(root)
        self.demonstrations = build_demonstrations(root, self.model)
        self.comparisons = build_comparisons(root, self.model)
        self.reward_model = build_reward_model(root, self.model)
        self.items = build_items(root, [item(n) for n in range(12)])


def build_reward_model(root: Path, policy_model: Path) -> Path:
    """Commit a reward model of random weights with the policy's tokenizer."""
    directory = root / "artifacts" / "reward-0001"
    tokenizer = load_tokenizer(policy_model)
    config = LlamaConfig.from_pretrained(policy_model, num_labels=1, reward_mean=0.0, reward_std=1.0)
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
    return commit_artifact(directory, "reward_model", "reward")


def item(number: int, words: int = 3, **changed: Any) -> EvaluationItem:
    """Return an item of one of two tasks and three languages."""
    fields = {
        "id": f"item/{number}",
        "source": "demo",
        "task": ("echo", "count")[number % 2],
        "language": ("de", "en", "es")[number % 3],
        "split": "eval",
        "prompt": [Message(role="user", content=" ".join(["red"] * words + ["blue"] * number))],
        "reference": str(number),
        "scorer": "exact" if number % 2 else "number",
        "ideal": f"It is {number}." if number % 2 else None,
    }
    return EvaluationItem(**(fields | changed))


def build_items(root: Path, items: list[EvaluationItem], name: str = "items-0001") -> Path:
    directory = root / "artifacts" / name
    directory.mkdir(parents=True)
    write_dataset(directory, items, EvaluationItem)
    return commit_artifact(directory, "dataset", "items")


def evaluate(function: Any, config: Any, inputs: dict[str, Path], output: Path) -> StageResult:
    """Run a stage function in this process."""
    output.mkdir()
    spec = StageSpec("evaluate", "evaluate", "test", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
    result: StageResult = function(config, Context(spec, inputs, output, output, NullTracker(), main_process=True))
    return result


def summary_of(output: Path) -> Any:
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("evaluate"))


def test_held_out_loss_is_that_of_each_row_alone(bench: Bench, tmp_path: Path) -> None:
    config = PolicyEvaluationConfig(batch_size=4)
    result = evaluate(policy.run, config, {"model": bench.model, "data": bench.demonstrations}, tmp_path / "out")
    model = load_policy(bench.model).eval()
    total, tokens = 0.0, 0
    for row in pq.read_table(bench.demonstrations / "eval.parquet").to_pylist():
        log_probabilities = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total -= log_probabilities[position - 1, label].item()
                tokens += 1
    overall = summary_of(tmp_path / "out")["loss"]["overall"]
    assert overall["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert overall["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert (overall["tokens"], overall["rows"]) == (tokens, 6)
    assert result.headline == f"loss {total / tokens:.3f}"
    assert not (tmp_path / "out" / "items.parquet").exists()


def test_losses_come_back_in_order_whatever_the_batch(bench: Bench, tmp_path: Path) -> None:
    rows = pq.read_table(bench.demonstrations / "train.parquet").to_pylist()
    ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
    model = load_policy(bench.model).eval()
    for name in ("alone", "batched"):
        (tmp_path / name).mkdir()
    one_by_one = row_losses(Rank(), tmp_path / "alone", model, ids, labels, batch_size=1) or []
    batched = row_losses(Rank(), tmp_path / "batched", model, ids, labels, batch_size=7) or []
    assert [row.loss for row in batched] == pytest.approx([row.loss for row in one_by_one], rel=1e-5)
    assert [row.tokens for row in batched] == [sum(label != -100 for label in row) for row in labels]


def greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    """Return the most likely continuation, one full forward pass a token."""
    for _ in range(steps):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-steps:]


def test_generation_is_greedy_for_every_prompt_in_its_place(bench: Bench) -> None:
    model, tokenizer = load_policy(bench.model).eval(), load_tokenizer(bench.model)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.temperature = 0.3
    expected = [greedy(model, ids, 9) for ids in encode_prompts(tokenizer, PROMPTS)]
    responses = generate(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=3)
    assert [r.text for r in responses] == [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]
    assert not any(response.ended for response in responses)


def test_generation_stops_at_the_ends_that_the_model_names(bench: Bench) -> None:
    model, tokenizer = load_policy(bench.model).eval(), load_tokenizer(bench.model)
    ids = encode_prompts(tokenizer, PROMPTS)
    tokens = [greedy(model, prompt, 9) for prompt in ids]
    stop = tokens[1][4]
    model.generation_config.eos_token_id = [stop]
    responses = generate(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=4)
    for response, full in zip(responses, tokens, strict=True):
        kept = full[: full.index(stop)] if stop in full else full
        assert response.text == tokenizer.decode(kept, skip_special_tokens=True)
        assert response.ended == (stop in full)
    assert responses[1].ended


def test_items_are_answered_and_scored(bench: Bench, tmp_path: Path) -> None:
    config = PolicyEvaluationConfig(max_new_tokens=5, batch_size=5)
    result = evaluate(policy.run, config, {"model": bench.model, "items": bench.items}, tmp_path / "out")
    items = read_items(tmp_path / "out")
    assert [i.id for i in items] == [f"item/{n}" for n in range(12)]
    tokenizer, model = load_tokenizer(bench.model), load_policy(bench.model).eval()
    prompt = Conversation([{"role": "user", "content": items[7].prompt}])
    ids = greedy(model, encode_prompts(tokenizer, [prompt])[0], 5)
    assert items[7].response == tokenizer.decode(ids, skip_special_tokens=True)
    assert [i.preference is None for i in items] == [n % 2 == 0 for n in range(12)]
    figures = summary_of(tmp_path / "out")["items"]
    assert figures["overall"]["n"] == 12 and figures["by_task"]["echo"]["n"] == 6
    assert figures["by_task"]["echo"]["preference"] is None
    assert figures["by_task_and_language"]["count"]["es"]["n"] == 2
    assert figures["overall"]["exact_match"]["value"] == pytest.approx(sum(i.correct for i in items) / 12)
    assert result.headline == f"exact match {figures['overall']['exact_match']['value']:.2f}"


def test_items_without_room_for_a_response_are_left_out_and_named(bench: Bench, tmp_path: Path) -> None:
    items = build_items(tmp_path, [item(0), item(1, words=130), item(2)])
    config = PolicyEvaluationConfig(max_new_tokens=4)
    evaluate(policy.run, config, {"model": bench.model, "items": items}, tmp_path / "out")
    assert summary_of(tmp_path / "out")["too_long"] == ["item/1"]
    assert [i.id for i in read_items(tmp_path / "out")] == ["item/0", "item/2"]
    with pytest.raises(UsageError, match=r"max_new_tokens=128: .* no item fits"):
        config = PolicyEvaluationConfig(max_new_tokens=128)
        evaluate(policy.run, config, {"model": bench.model, "items": items}, tmp_path / "none")


def test_a_limit_takes_items_evenly(bench: Bench) -> None:
    items = [item(n, task="a" if n < 9 else "b", language="en") for n in range(12)]
    assert [i.id for i in policy.take_evenly(items, 5)] == ["item/0", "item/1", "item/2", "item/9", "item/10"]
    assert policy.take_evenly(items, None) == policy.take_evenly(items, 12) == items


def test_training_items_are_used_when_none_is_held_out(bench: Bench, tmp_path: Path) -> None:
    items = build_items(tmp_path, [item(n, split="train") for n in range(3)])
    config = PolicyEvaluationConfig(max_new_tokens=2)
    evaluate(policy.run, config, {"model": bench.model, "items": items}, tmp_path / "out")
    assert len(read_items(tmp_path / "out")) == 3


def test_reward_accuracy_is_that_of_each_pair_alone(bench: Bench, tmp_path: Path) -> None:
    config = RewardEvaluationConfig(batch_size=3)
    result = evaluate(reward.run, config, {"model": bench.reward_model, "data": bench.comparisons}, tmp_path / "out")
    model = load_reward_model(bench.reward_model).eval()
    expected = []
    for row in pq.read_table(bench.comparisons / "eval.parquet").to_pylist():
        scores = [model(torch.tensor([row["prompt_ids"] + r])).logits.item() for r in row["responses_ids"]]
        for i, rank in enumerate(row["ranks"]):
            expected += [(row["id"], scores[i], scores[j]) for j, other in enumerate(row["ranks"]) if rank < other]
    pairs = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [pair["id"] for pair in pairs] == [group for group, _, _ in expected]
    assert [pair["chosen_score"] for pair in pairs] == pytest.approx([better for _, better, _ in expected], abs=1e-5)
    assert [pair["rejected_score"] for pair in pairs] == pytest.approx([worse for _, _, worse in expected], abs=1e-5)
    summary = summary_of(tmp_path / "out")
    accuracy = sum(better > worse for _, better, worse in expected) / len(expected)
    assert summary["overall"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert summary["overall"]["accuracy"]["n"] == len(expected)
    # The shorter response is the better one in every pair, so preferring the longer is always wrong.
    assert summary["overall"]["longer_wins_accuracy"] == 0
    assert summary["groups"] == 4 and set(summary["by_source"]) == {"groups"}
    assert result.headline.startswith(f"accuracy {accuracy:.2f} ± ")


def without_weights(model: Path, root: Path) -> Path:
    """Return a copy of a model artifact that cannot be loaded."""
    directory = root / "artifacts" / "unloadable-0001"
    directory.mkdir(parents=True)
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


def rewritten_tokens(tokens: Path, root: Path, **facts: Any) -> Path:
    """Return a copy of a tokens artifact whose description says something else."""
    directory = root / "artifacts" / "rewritten-0001"
    directory.mkdir(parents=True)
    for path in tokens.glob("*.parquet"):
        (directory / path.name).write_bytes(path.read_bytes())
    described = json.loads((tokens / "tokens.json").read_text(encoding="utf-8")) | facts
    (directory / "tokens.json").write_text(json.dumps(described), encoding="utf-8")
    return directory


def refusal(bench: Bench, root: Path, stage: Any, config: Any, **inputs: Path) -> str:
    """Return the error line of a stage whose model cannot be loaded, so that the check must have come before."""
    with pytest.raises(UsageError) as caught:
        evaluate(stage.run, config, {"model": without_weights(bench.model, root), **inputs}, root / "out")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_found_before_the_model_loads(bench: Bench, tmp_path: Path) -> None:
    config = PolicyEvaluationConfig()
    (other := tmp_path / "other").mkdir()
    for number, (inputs, expected) in enumerate(
        [
            ({}, "nothing to score on; give inputs.data, inputs.items or both"),
            ({"data": bench.comparisons}, "holds comparison tokens; this stage needs demonstration tokens"),
            ({"data": rewritten_tokens(bench.demonstrations, tmp_path, template_sha256="a" * 64)}, "aaaaaaaaaaaa"),
            ({"data": rewritten_tokens(bench.demonstrations, other, tokenizer_sha256="b" * 64)}, "bbbbbbbbbbbb"),
            ({"items": build_items(tmp_path, [])}, "no evaluation items"),
            ({"items": build_items(tmp_path, [item(0, scorer="exakt")], "bad-0001")}, "did you mean 'exact'?"),
            ({"items": build_items(tmp_path, [item(0, scorer="sentiment")], "rated-0001")}, "calls none right"),
        ]
    ):
        root = tmp_path / str(number)
        root.mkdir()
        assert expected in refusal(bench, root, policy, config, **inputs)


def test_tied_comparisons_say_nothing(bench: Bench, tmp_path: Path) -> None:
    tied = rewritten_tokens(bench.comparisons, tmp_path)
    table = pq.read_table(tied / "eval.parquet")
    ranks = pa.array([[1] * len(row) for row in table["ranks"].to_pylist()], table.schema.field("ranks").type)
    pq.write_table(table.set_column(table.schema.get_field_index("ranks"), "ranks", ranks), tied / "eval.parquet")
    assert "one tie" in refusal(bench, tmp_path, reward, RewardEvaluationConfig(), data=tied)


def test_without_held_out_rows_the_stages_say_so_and_the_report_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    for tokens in (bench.demonstrations, bench.comparisons):
        table = pq.read_table(tokens / "eval.parquet")
        pq.write_table(table.slice(0, 0), tokens / "eval.parquet")
        (tokens / "manifest.json").unlink()
        commit_artifact(tokens, "tokens", tokens.name)
    inputs = {"model": bench.model, "data": bench.demonstrations}
    result = evaluate(policy.run, PolicyEvaluationConfig(), inputs, tmp_path / "policy")
    assert (result.headline, result.metrics) == ("no held-out rows", {})
    assert summary_of(tmp_path / "policy") == {"loss": None, "items": None, "too_long": []}
    assert f"{bench.demonstrations.name}: no held-out rows" in caplog.text
    evaluate(policy.run, PolicyEvaluationConfig(max_new_tokens=2), inputs | {"items": bench.items}, tmp_path / "items")
    assert summary_of(tmp_path / "items")["items"]["overall"]["n"] == 12
    inputs = {"model": bench.reward_model, "data": bench.comparisons}
    assert evaluate(reward.run, RewardEvaluationConfig(), inputs, tmp_path / "reward").headline == "no held-out rows"

    store = bench.model.parent
    run_stage("evaluate.policy", store / "scores-policy", {"model": bench.model, "data": bench.demonstrations})
    run_stage("evaluate.reward", store / "scores-reward", inputs)
    scores = {"policy": store / "scores-policy", "reward": store / "scores-reward"}
    run_stage("evaluate.report", store / "report", scores)
    page = (store / "report" / "report.html").read_text(encoding="utf-8")
    assert "no held-out rows" in page
    assert summary_of(store / "report")["reward"] == {}


def test_the_stages_run_by_hand_and_report(bench: Bench, tmp_path: Path) -> None:
    store = bench.model.parent
    inputs = {"model": bench.model, "data": bench.demonstrations, "items": bench.items}
    run_stage("evaluate.policy", store / "scores-policy", inputs, max_new_tokens=4)
    inputs = {"model": bench.reward_model, "data": bench.comparisons}
    run_stage("evaluate.reward", store / "scores-reward", inputs)
    inputs = {"policy": store / "scores-policy", "reward": store / "scores-reward"}
    run_stage("evaluate.report", store / "report", inputs)
    summary = summary_of(store / "report")
    assert summary["policies"]["base"]["items"]["overall"]["n"] == 12
    assert summary["reward"]["reward"]["overall"]["accuracy"]["n"] > 0
    assert {row["stage"] for row in summary["stages"]} >= {"base", "reward", "policy", "items"}
    assert read_manifest(store / "report").kind == "report"
    page = (store / "report" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Reward model" in page
