"""Kahneman-Tversky optimisation end to end on a tiny Llama, beside TRL's trainer on the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import trl
from build_artifacts import build_model, build_unpaired
from datasets import Dataset
from forked_stages import run_child
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.stage.artifact import read_manifest
from posttrain.train.rows.unpaired import mismatched, read_unpaired

WEIGHTS = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
LORA = {"adapter.kind": "lora", "adapter.rank": 4}


class Bench:
    """A model, unpaired tokens and the model's log-probabilities of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root, attention_dropout=0.0)
        self.data = build_unpaired(root, self.model)
        self.reference = self.run("reference", "reference-0001", {"model": self.model, "data": self.data})

    def run(self, stage: str, name: str, inputs: dict[str, Path], expect: int = 0, **knobs: Any) -> Path:
        """Run a stage in a child and return its artifact."""
        output = self.root / "artifacts" / name
        arguments = [f"inputs.{key}={path}" for key, path in inputs.items()]
        arguments += [f"output={output}", "tracking.wandb=disabled", *(f"{k}={v}" for k, v in knobs.items())]
        code, _ = run_child(f"posttrain.train.{stage}", arguments, self.root)
        assert code == expect, self.log()[-3000:]
        return output

    def kto(self, name: str, **knobs: Any) -> Path:
        """Run KTO from the model."""
        inputs = {"model": self.model, "data": self.data, "reference": self.reference}
        common = {"global_batch_size": 8, "micro_batch_size": 4, "log_steps": 1, "seed": 3, "max_steps": 6}
        return self.run("kto", name, inputs, **{**common, "optimizer.learning_rate": 3e-3, **WEIGHTS, **knobs})

    def log(self) -> str:
        """What the stages printed."""
        return (self.root / "child.log").read_text()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kto"))


def history(artifact: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def as_trl_takes_them(data: Path, model: Path) -> Dataset:
    """Return the training rows as texts, in an order in which TRL gives each the response that it has with us."""
    tokenizer, rows = load_tokenizer(model), list(read_unpaired(data, "train"))
    others, order = mismatched([row["prompt_ids"] for row in rows]), [0]
    while len(order) < len(rows):
        order.insert(0, others[order[0]])
    texts = [
        {
            "prompt": tokenizer.decode(rows[row]["prompt_ids"]),
            "completion": tokenizer.decode(rows[row]["response_ids"]),
            "label": rows[row]["label"],
        }
        for row in order
    ]
    return Dataset.from_list(texts)


@pytest.fixture(scope="module")
def trls(bench: Bench) -> trl.KTOTrainer:
    """TRL's own trainer after four steps over all rows at once."""
    rows = as_trl_takes_them(bench.data, bench.model)
    arguments = trl.KTOConfig(
        output_dir=str(bench.root / "trl"),
        per_device_train_batch_size=len(rows),
        max_steps=4,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        logging_steps=1,
        gradient_checkpointing=None,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **WEIGHTS,
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(bench.model) for _ in range(2))
    tokenizer = load_tokenizer(bench.model)
    trainer = trl.KTOTrainer(policy, reference, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def ours(bench: Bench) -> Path:
    """Four steps over all rows at once, in micro-batches of two or three rows."""
    knobs = {"optimizer.schedule": "constant", "optimizer.warmup_fraction": 0, "max_steps": 4}
    rows = len(pq.read_table(bench.data / "train.parquet"))
    return bench.kto("kto-ours", global_batch_size=rows, micro_batch_tokens=100, **knobs)


def test_training_is_that_of_trl_in_one_micro_batch(ours: Path, trls: trl.KTOTrainer) -> None:
    theirs = [line for line in trls.state.log_history if "loss" in line]
    assert len(theirs) == 4
    assert max(line["kl"] for line in theirs) > 0.05
    for own, line in zip(history(ours), theirs, strict=True):
        for name in ("loss", "kl", "grad_norm", *(n for n in line if n.startswith(("rewards/", "logps/")))):
            assert own[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name
    expected = dict(trls.model.named_parameters())
    for name, tensor in load_file(ours / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name].detach(), atol=1e-5, rtol=0)


def test_the_held_out_figures_are_those_of_the_held_out_rows(bench: Bench, ours: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(ours).eval()
    rows = list(read_unpaired(bench.data, "eval"))
    table = pq.read_table(bench.reference / "eval.parquet").to_pylist()
    known = {(row["id"], row["response"]): row["logp"] for row in table}
    ratios = torch.tensor([response_logp(model, row, "response_ids") - known[row["id"], 0] for row in rows])
    others = [response_logp(model, row, "mismatched_ids") - known[row["id"], 1] for row in rows]
    point = sum(others) / len(others)
    assert point > 0.01
    labels = torch.tensor([row["label"] for row in rows])
    gains = 0.3 * torch.where(labels, 1.0, -1.0) * (ratios - point)
    losses = torch.where(labels, 1.2, 0.7) * (1 - torch.sigmoid(gains))
    metrics = read_manifest(ours).metrics
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert metrics["eval_kl"] == pytest.approx(point, abs=1e-4)
    assert metrics["eval_rewards/chosen"] == pytest.approx(0.3 * float(ratios[labels].mean()), abs=1e-4)


@torch.no_grad()
def response_logp(model: Any, row: dict[str, Any], response: str) -> float:
    ids_T = torch.tensor([*row["prompt_ids"], *row[response]])
    logps_T = model(ids_T[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids_T[1:, None]).squeeze(-1)
    return float(logps_T[len(row["prompt_ids"]) - 1 :].sum())


def test_an_adapter_starts_from_its_reference_and_learns(bench: Bench) -> None:
    knobs = {**LORA, "max_steps": 16, "micro_batch_size": 8, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    artifact = bench.kto("kto-lora", **{**knobs, "optimizer.learning_rate": 1e-2})
    first, *_, last = history(artifact)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["rewards/margins"] > 0.05
    manifest = read_manifest(artifact)
    assert manifest.facts["labels"] == {"desirable": 18, "undesirable": 24}
    margin = f"eval margin {manifest.metrics['eval_rewards/margins']:.3f}"
    assert manifest.headline == f"{margin}; labels out of balance (see its log)"
    assert json.loads((artifact / "base.json").read_text())["base"] == bench.model.name
    assert artifact.joinpath("adapter_model.safetensors").exists()


def test_a_reference_of_another_model_is_refused(bench: Bench) -> None:
    other = build_model(bench.root, seed=1, name="other-0001")
    bench.run("kto", "kto-other", {"model": other, "data": bench.data, "reference": bench.reference}, expect=2)
    assert "was made from model base-0001, but this stage has other-0001" in bench.log()
