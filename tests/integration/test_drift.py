"""The stage evaluate.drift on tiny models, against a naive computation of its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from build_artifacts import build_model, commit_artifact, run_stage
from peft import LoraConfig, get_peft_model

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.checks.scorers import preference_score, score
from posttrain.data.messages import Conversation, Message
from posttrain.data.records import EvaluationItem, prompt_of, write_dataset
from posttrain.evaluate import drift
from posttrain.evaluate.config.drift import DriftConfig
from posttrain.evaluate.measure.drift_scores import SampledResponse, distinct_n, read_responses
from posttrain.models.load import load_policy
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

WORDS = ("red", "blue", "green", "dog", "cat", "one")
KNOBS: dict[str, Any] = {"num_samples": 3, "max_new_tokens": 6, "batch_size": 4, "resamples": 100, "seed": 5}


def build_items(root: Path) -> tuple[Path, list[EvaluationItem]]:
    items = [
        EvaluationItem(
            id=f"item/{number}",
            source="demo",
            task="words",
            language="en",
            split="eval",
            prompt=[Message(role="user", content=f"{word} runs{' here' * number}")],
            reference="a|b|c",
            scorer="choice",
            ideal="a" if number % 2 else None,
        )
        for number, word in enumerate(WORDS)
    ]
    directory = root / "artifacts" / "items-0001"
    directory.mkdir(parents=True)
    write_dataset(directory, items, EvaluationItem)
    return commit_artifact(directory, "dataset", "items"), items


class Bench:
    """Two models with one tokenizer, and items."""

    def __init__(self, root: Path) -> None:
        self.reference = build_model(root)
        self.model = build_model(root, seed=1, name="other-0001")
        self.items_from, self.items = build_items(root)

    def inputs(self, **changed: Path) -> dict[str, Path]:
        return {"model": self.model, "reference": self.reference, "items": self.items_from} | changed


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("drift"))


def measure(inputs: dict[str, Path], output: Path, **knobs: Any) -> list[SampledResponse]:
    """Run the stage in this process and return what it wrote."""
    output.mkdir()
    given = KNOBS | knobs
    seed = given.pop("seed")
    spec = StageSpec("drift", "drift", "test", "0" * 64, "", {}, {}, {}, "", "", "", seed, Distributed(), Tracking())
    drift.run(DriftConfig(**given), Context(spec, inputs, output, output, NullTracker(), main_process=True))
    return read_responses(output)


def naive_logprobs(directory: Path, prompt: list[int], response: list[int], temperature: float) -> torch.Tensor:
    """One sequence at a time, in float64, without padding."""
    model = load_policy(directory).eval().double()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_figure_of_every_sample(bench: Bench, tmp_path: Path, temperature: float) -> None:
    rows = iter(measure(bench.inputs(), tmp_path / "out", temperature=temperature))
    sampler = Sampler(load_policy(bench.model).eval(), load_tokenizer(bench.model))
    prompts = encode_prompts(sampler.tokenizer, [prompt_of(item) for item in bench.items])
    shape: dict[str, Any] = {"max_tokens": 6, "num_samples": 3, "temperature": temperature}
    params = [SamplingParams(**shape, seed=derived_seed(5, item.id)) for item in bench.items]
    for item, prompt, samples in zip(bench.items, prompts, sampler.generate(prompts, params), strict=True):
        for number, sample in enumerate(samples):
            row = next(rows)
            ours = naive_logprobs(bench.model, prompt, sample.token_ids, temperature)
            theirs = naive_logprobs(bench.reference, prompt, sample.token_ids, temperature)
            plain = naive_logprobs(bench.reference, prompt, sample.token_ids, 1.0)
            ratio = (theirs - ours).exp()
            assert (row.id, row.sample, row.response) == (item.id, number, sample.text)
            assert row.kl == pytest.approx(float((ours - theirs).sum()), abs=1e-5)
            assert row.k3 == pytest.approx(float((ratio - 1 - ratio.log()).sum()), abs=1e-5)
            assert row.reference_logprob == pytest.approx(float(plain.sum()), abs=1e-5)
            assert (row.tokens, row.ended) == (len(sample.token_ids), sample.finish_reason == "stop")
            assert row.correct == score("choice", sample.text, item.reference)
            liking = item.ideal and preference_score(sample.text, item.reference, "choice", item.ideal)
            assert (row.preference, row.score) == (liking, row.correct if liking is None else liking)
    assert next(rows, None) is None


def test_the_summary_is_that_of_the_samples(bench: Bench, tmp_path: Path) -> None:
    run_stage("evaluate.drift", tmp_path / "out", bench.inputs(), **KNOBS)
    rows = pq.read_table(tmp_path / "out/samples.parquet").to_pylist()
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    tokens = sum(row["tokens"] for row in rows)
    assert (summary["items"], summary["responses"]) == (6, 18)
    assert summary["kl"]["value"] == pytest.approx(sum(row["kl"] for row in rows) / 18)
    assert summary["kl"]["low"] < summary["kl"]["value"] < summary["kl"]["high"]
    assert summary["kl_per_token"]["value"] == pytest.approx(sum(row["kl"] for row in rows) / tokens)
    assert summary["distinct_2"] == distinct_n([row["response"] for row in rows], 2)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.kind, manifest.tokens, manifest.metrics["kl"]) == ("drift", tokens, summary["kl"]["value"])


def test_a_model_does_not_drift_from_itself(bench: Bench, tmp_path: Path) -> None:
    rows = measure(bench.inputs(model=bench.reference), tmp_path / "out")
    assert {(row.kl, row.k3) for row in rows} == {(0, 0)}


def test_how_many_run_at_once_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    small = measure(bench.inputs(), tmp_path / "small", batch_size=2, scoring_tokens=64)
    large = measure(bench.inputs(), tmp_path / "large", batch_size=100)
    assert [row.response for row in small] == [row.response for row in large]
    assert [row.kl for row in small] == pytest.approx([row.kl for row in large], abs=1e-5)


def test_an_adapter_drifts_from_the_model_under_it(bench: Bench, tmp_path: Path) -> None:
    directory = bench.reference.parent / "adapter-0001"
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(2)
    get_peft_model(load_policy(bench.reference), lora).save_pretrained(str(directory))
    load_tokenizer(bench.reference).save_pretrained(str(directory))
    base = {"base": bench.reference.name, "digest": read_manifest(bench.reference).digest}
    (directory / "base.json").write_text(json.dumps(base), encoding="utf-8")
    adapter = commit_artifact(directory, "model", "adapter")
    row = measure(bench.inputs(model=adapter), tmp_path / "out")[-1]
    sampler = Sampler(load_policy(adapter).eval(), load_tokenizer(adapter))
    (prompt,) = encode_prompts(sampler.tokenizer, [Conversation([{"role": "user", "content": row.prompt}])])
    params = SamplingParams(max_tokens=6, num_samples=3, seed=derived_seed(5, row.id))
    ids = sampler.generate([prompt], params)[0][row.sample].token_ids
    ours, theirs = (float(naive_logprobs(of, prompt, ids, 1.0).sum()) for of in (adapter, bench.reference))
    assert row.kl == pytest.approx(ours - theirs, abs=1e-5)
    assert abs(row.kl) > 1e-3


def test_a_reference_of_another_tokenizer_is_refused(bench: Bench, tmp_path: Path) -> None:
    other = build_model(tmp_path, vocab_size=280)
    with pytest.raises(
        UsageError, match=r"^evaluate\.drift: model and reference differ in tokenizer.*; give as reference"
    ):
        measure(bench.inputs(reference=other), tmp_path / "out")


def test_no_room_for_a_response_is_one_line(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no item fits the model's context of 128; lower it"):
        measure(bench.inputs(), tmp_path / "out", max_new_tokens=128)
