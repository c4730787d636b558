"""Training stages end to end on a tiny Llama, each run in a process of its own."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from build_artifacts import build_comparisons, build_demonstrations, build_model, recommitted
from forked_stages import run_child, signal_in
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.models.load import load_policy, load_reward_model
from posttrain.models.packing import best_fit_decreasing
from posttrain.stage.artifact import read_manifest
from posttrain.train.export import export

STEPS = [16, pytest.param(200, marks=pytest.mark.slow)]
LORA = {"adapter.kind": "lora", "adapter.rank": 4}


class Bench:
    """One model, its tokens, and a way to run stages on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root, new_tokens=True)
        self.demonstrations = build_demonstrations(root, self.model)
        self.comparisons = build_comparisons(root, self.model)

    def run(self, stage: str, name: str, inputs: dict[str, Path], expect: int = 0, **options: Any) -> Path:
        """Run a stage to an artifact of that name and return its directory."""
        output = self.root / "artifacts" / name
        knobs = {"global_batch_size": 8, "micro_batch_size": 4, "log_steps": 1, "seed": 3, **options.pop("knobs", {})}
        if stage == "reference":
            knobs = {name: value for name, value in knobs.items() if name == "share_prompts"}
        arguments = [f"inputs.{key}={path}" for key, path in inputs.items()]
        arguments += [f"output={output}", "tracking.wandb=disabled", *(f"{k}={v}" for k, v in knobs.items())]
        (self.root / "child.log").unlink(missing_ok=True)
        code, _ = run_child(f"posttrain.train.{stage}", arguments, self.root, **options)
        assert code == expect, self.log()[-3000:]
        return output

    def log(self) -> str:
        """What the last stage printed."""
        return (self.root / "child.log").read_text()

    def sft(self, name: str, knobs: dict[str, Any], **options: Any) -> Path:
        """Run SFT on the demonstrations."""
        return self.run("sft", name, {"model": self.model, "data": self.demonstrations}, knobs=knobs, **options)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def history(artifact: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact / "logs" / "metrics.jsonl").read_text().splitlines()]


def weights(artifact: Path) -> dict[str, torch.Tensor]:
    return load_file(artifact / "model.safetensors")


def test_sft_learns_and_leaves_a_model_that_loads_alone(bench: Bench) -> None:
    artifact = bench.sft("sft-learns", {"max_steps": 40, "optimizer.learning_rate": 0.01})
    losses = [line["loss"] for line in history(artifact) if "loss" in line]
    assert losses[0] == pytest.approx(math.log(400), rel=0.15)  # random weights over 400 tokens
    assert losses[-1] < 0.6 * losses[0]
    names = {path.name for path in artifact.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "manifest.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    assert load_policy(artifact).config.eos_token_id == load_tokenizer(artifact).eos_token_id


def test_the_micro_batch_changes_nothing(bench: Bench) -> None:
    model = build_model(bench.root, name="plain-0001", attention_dropout=0.0)  # dropout masks depend on shapes
    inputs = {"model": model, "data": bench.demonstrations}
    knobs = {"max_steps": 6, "optimizer.learning_rate": 1e-3}
    whole = weights(bench.run("sft", "sft-micro8", inputs, knobs={**knobs, "micro_batch_size": 8}))
    parts = weights(bench.run("sft", "sft-tokens", inputs, knobs={**knobs, "micro_batch_tokens": 100}))
    for name, tensor in whole.items():  # what is left is the order of float32 sums
        torch.testing.assert_close(parts[name], tensor, atol=2e-5, rtol=0)


def test_the_held_out_loss_is_that_of_the_held_out_rows(bench: Bench) -> None:
    artifact = bench.sft("sft-held-out", {"max_steps": 20, "optimizer.learning_rate": 0.01})
    model = load_policy(artifact).eval()
    losses = {}
    for split in ("train", "eval"):
        rows = pq.read_table(bench.demonstrations / f"{split}.parquet").to_pylist()
        trained = sum(label != -100 for row in rows for label in row["labels"])
        losses[split] = -sum(sum(response_logps(model, row)) for row in rows) / trained
    assert losses["eval"] - losses["train"] > 0.05
    assert read_manifest(artifact).metrics["eval_loss"] == pytest.approx(losses["eval"], abs=1e-4)


@torch.no_grad()
def response_logps(model: Any, row: dict[str, Any]) -> list[float]:
    """Log-probabilities of a row's trained tokens, from the whole logits."""
    ids_T, labels_T = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
    logps_TV = model(ids_T[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    chosen_T = logps_TV.gather(-1, ids_T[1:, None]).squeeze(-1)
    return chosen_T[labels_T[1:] != -100].tolist()


def test_packed_training_sees_what_unpacked_training_sees(bench: Bench) -> None:
    """One step over all rows: the same tokens, each predicted from its own row alone, give the same loss."""
    model = build_model(bench.root, name="calm-0001", attention_dropout=0.0)  # dropout masks depend on shapes
    inputs = {"model": model, "data": bench.demonstrations}
    lengths = [len(ids) for ids in pq.read_table(bench.demonstrations / "train.parquet")["input_ids"].to_pylist()]
    packs = len(best_fit_decreasing(lengths, 128))
    assert packs < len(lengths) / 2
    whole = {"max_steps": 1, "global_batch_size": len(lengths), "micro_batch_size": 7}
    packed = {**whole, "packing": "true", "pack_length": 128, "global_batch_size": packs, "micro_batch_size": packs}
    alone = history(bench.run("sft", "sft-alone", inputs, knobs=whole))[0]
    together = history(bench.run("sft", "sft-packed", inputs, knobs=packed))[0]
    for name in ("loss", "grad_norm", "token_accuracy", "entropy"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5), name
    assert together["tokens_seen"] == alone["tokens_seen"] == sum(lengths)


def dpo(bench: Bench, name: str, policy: Path, reference: Path, knobs: dict[str, Any]) -> Path:
    inputs = {"model": policy, "data": bench.comparisons, "reference": reference}
    return bench.run("dpo", name, inputs, knobs={"max_steps": 4, **knobs})


def test_dpo_starts_from_its_reference_with_full_weights(bench: Bench) -> None:
    sft = bench.sft("sft-full", {"max_steps": 6, "optimizer.learning_rate": 1e-3})
    reference = bench.run("reference", "reference-full", {"model": sft, "data": bench.comparisons})
    artifact = dpo(bench, "dpo-full", sft, reference, {"optimizer.learning_rate": 1e-3})
    first, *_, last = [line for line in history(artifact) if "loss" in line]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the policy is its reference before the first step
    assert last["rewards/margins"] > 0


def test_lora_sft_then_lora_dpo_has_the_finetuned_policy_as_reference(bench: Bench) -> None:
    sft = bench.sft("sft-lora", {**LORA, "max_steps": 20, "optimizer.learning_rate": 0.01})
    reference = bench.run("reference", "reference-lora", {"model": sft, "data": bench.comparisons})
    artifact = dpo(bench, "dpo-lora", sft, reference, {**LORA, "optimizer.learning_rate": 1e-3})
    first = history(artifact)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)

    # against the base model as reference the loss would not start at log 2: the two differ
    base = bench.run("reference", "reference-base", {"model": bench.model, "data": bench.comparisons})
    gap = [
        abs(a - b)
        for a, b in zip(
            *(pq.read_table(path / "train.parquet")["logp"].to_pylist() for path in (reference, base)), strict=True
        )
    ]
    assert min(gap) > 0.05

    # the adapter artifact points at the base, not at the SFT artifact, and holds one adapter
    assert json.loads((artifact / "base.json").read_text())["base"] == bench.model.name
    assert not (artifact / "ref").exists()
    assert (artifact / "adapter_model.safetensors").stat().st_size < 100_000


def test_a_merged_export_computes_what_the_adapter_does(bench: Bench, tmp_path: Path) -> None:
    sft = bench.sft("sft-merge", {**LORA, "max_steps": 20, "optimizer.learning_rate": 0.01})
    export(sft, tmp_path / "merged", merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        wanted = load_policy(sft).eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-5, rtol=1e-5)
        base = load_policy(bench.model).eval()(ids).logits
    assert (wanted - base).abs().max() > 0.01  # the adapter does something
    assert (tmp_path / "merged" / "chat_template.jinja").is_file()


def test_a_merged_export_has_the_precision_of_its_backbone(bench: Bench, tmp_path: Path) -> None:
    model = build_model(bench.root, name="bf16-0001", dtype=torch.bfloat16)
    inputs = {"model": model, "data": bench.demonstrations}
    sft = bench.run("sft", "sft-bf16", inputs, knobs={**LORA, "max_steps": 2})
    export(sft, tmp_path / "merged", merge=True)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


# What each loss is while the policy is its reference: every log-ratio is 0, beta is 0.1, label smoothing as below.
SMOOTHING = {"exo_pair": 0.1}
FIRST_LOSS = {
    "exo_pair": 0.5 * (math.log(0.5) - math.log(0.9)) + 0.5 * (math.log(0.5) - math.log(0.1)),
    "aot": math.log(2),
}


@pytest.mark.parametrize("loss", ["exo_pair", "aot", "sft"])
def test_other_losses_train_against_the_precomputed_reference(bench: Bench, loss: str) -> None:
    reference = bench.root / "artifacts" / "reference-losses"
    if not reference.exists():
        bench.run("reference", reference.name, {"model": bench.model, "data": bench.comparisons})
    knobs = {"loss": f"[{loss}]", "label_smoothing": SMOOTHING.get(loss, 0.0), "max_steps": 2}
    artifact = dpo(bench, f"dpo-{loss}", bench.model, reference, {**knobs, "optimizer.learning_rate": 1e-3})
    before, after = weights(bench.model), weights(artifact)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    first = history(artifact)[0]["loss"]
    if loss in FIRST_LOSS:
        assert first == pytest.approx(FIRST_LOSS[loss], rel=1e-4)
    else:  # the one that needs no reference: random weights over 400 tokens
        assert first == pytest.approx(math.log(400), rel=0.15)


def test_reference_of_another_model_is_refused(bench: Bench) -> None:
    reference = bench.run("reference", "reference-other", {"model": bench.model, "data": bench.comparisons})
    sft = bench.sft("sft-other", {"max_steps": 2})
    inputs = {"model": sft, "data": bench.comparisons, "reference": reference}
    bench.run("dpo", "dpo-other", inputs, expect=2)
    assert "was made from model base-0001, but this stage has sft-other" in bench.log()


def test_reward_model_ranks_and_keeps_its_scale(bench: Bench) -> None:
    inputs = {"model": bench.model, "data": bench.comparisons}
    artifact = bench.run("reward", "reward-full", inputs, knobs={"max_steps": 40, "optimizer.learning_rate": 3e-3})
    lines = [line for line in history(artifact) if "loss" in line]
    assert lines[-1]["accuracy"] > 0.9  # shorter is better: easy, and learned
    model = load_reward_model(artifact)
    facts = read_manifest(artifact).facts
    assert model.config.reward_std == facts["reward_std"] > 0
    again = load_reward_model(artifact)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps", STEPS)
def test_shared_prompts_train_what_responses_alone_train(bench: Bench, steps: int) -> None:
    inputs = {"model": bench.model, "data": bench.comparisons}
    runs = {}
    for share, micro in (("always", {"micro_batch_tokens": 170}), ("never", {})):  # of 3, 3 and 2 groups
        knobs = {"max_steps": steps, "optimizer.learning_rate": 1e-3, "eval_steps": 8, "share_prompts": share, **micro}
        runs[share] = bench.run("reward", f"reward-{share}-{steps}", inputs, knobs=knobs)
    for line, other in zip(*(history(runs[share]) for share in ("always", "never")), strict=True):
        for name in ("loss", "eval_loss", "mean_reward", "eval_accuracy", "grad_norm", "tokens_seen"):
            assert line.get(name, 0.0) == pytest.approx(other.get(name, 0.0), abs=1e-4, rel=1e-4), name
    facts = [read_manifest(runs[share]).facts["reward_std"] for share in ("always", "never")]
    assert facts[0] == pytest.approx(facts[1], abs=1e-4)


@pytest.mark.parametrize("steps", STEPS)
def test_dpo_with_shared_prompts_and_a_shared_reference_trains_what_pairs_alone_train(bench: Bench, steps: int) -> None:
    runs = []
    for share, micro in (("always", {}), ("never", {"micro_batch_tokens": 280})):
        data = {"model": bench.model, "data": bench.comparisons}
        reference = bench.run("reference", f"reference-{share}-{steps}", data, knobs={"share_prompts": share})
        knobs = {"max_steps": steps, "optimizer.learning_rate": 1e-3, "eval_steps": 8, "share_prompts": share, **micro}
        runs.append(history(bench.run("dpo", f"dpo-{share}-{steps}", {**data, "reference": reference}, knobs=knobs)))
    assert runs[0][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for line, other in zip(*runs, strict=True):
        for name in {"loss", "eval_loss", "rewards/margins", "logps/chosen", "eval_logps/rejected"} & line.keys():
            assert line[name] == pytest.approx(other[name], abs=2e-4, rel=2e-4), name


@pytest.mark.parametrize("stage", ["dpo", pytest.param("reward", marks=pytest.mark.slow)])
def test_a_killed_stage_with_shared_prompts_goes_on_exactly(bench: Bench, stage: str) -> None:
    inputs = {"model": bench.model, "data": bench.comparisons}
    if stage == "dpo":
        inputs["reference"] = bench.run("reference", "reference-of-killed", inputs)
    knobs = {"max_steps": 8, "save_steps": 2, "share_prompts": "always"}
    whole = read_manifest(bench.run(stage, f"{stage}-whole", inputs, knobs=knobs)).digest
    killed = {"expect": -9, "signal_at": 90, "number": signal.SIGKILL}
    artifact = bench.run(stage, f"{stage}-killed", inputs, knobs=knobs, **killed)
    saved = list((bench.root / "artifacts" / f"{stage}-killed.work" / "checkpoints").glob("checkpoint-*"))
    assert not artifact.exists() and saved
    bench.run(stage, f"{stage}-killed", inputs, knobs=knobs)
    assert read_manifest(artifact).digest == whole


def test_the_best_weights_are_kept_and_patience_ends_a_run(bench: Bench) -> None:
    constant = {"optimizer.learning_rate": 0.05, "optimizer.schedule": "constant", "optimizer.warmup_fraction": 0}
    chosen = {"best.metric": "loss", "best.every": 2, "best.patience": 2, "profile_steps": 2}
    artifact = bench.sft("sft-best", {**constant, **chosen, "max_steps": 80, "save_steps": 1})
    made = read_manifest(artifact).metrics
    held_out = {line["step"]: line["eval_loss"] for line in history(artifact)[:-1] if "eval_loss" in line}
    best = min(held_out, key=lambda step: held_out[step])
    assert made["steps"] == best + 4 == max(held_out) < 80
    assert (made["best_step"], made["eval_loss"]) == (best, pytest.approx(held_out[best]))
    plain = bench.sft("sft-as-long", {**constant, "max_steps": best})
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(artifact)[name], tensor), name
    with gzip.open(artifact / "logs" / "trace.json.gz") as trace:
        seen = Counter(event.get("name") for event in json.load(trace)["traceEvents"])
    assert sum(count for name, count in seen.items() if str(name).startswith("Optimizer.step")) == 2


def test_a_killed_run_with_every_other_knob_goes_on_exactly(bench: Bench) -> None:
    knobs = {
        **{"optimizer.kind": "muon", "optimizer.schedule": "warmup_stable_decay", "optimizer.learning_rate": 0.01},
        **{"best.metric": "loss", "best.every": 2, "neftune_alpha": 5, "max_steps": 8, "save_steps": 2},
    }
    whole = read_manifest(bench.sft("sft-knobs", knobs))
    kill = partial(signal_in, "rotate_checkpoints", 3, signal.SIGKILL)
    artifact = bench.sft("sft-knobs-killed", knobs, expect=-9, prepare=kill)
    assert not artifact.exists()
    bench.sft("sft-knobs-killed", knobs)
    assert read_manifest(artifact).digest == whole.digest
    other = read_manifest(bench.sft("sft-knobs-quiet", {**knobs, "neftune_alpha": "null"}))
    assert other.digest != whole.digest


def test_lora_reward_model_saves_its_head(bench: Bench) -> None:
    inputs = {"model": bench.model, "data": bench.comparisons}
    knobs = {**LORA, "max_steps": 20, "optimizer.learning_rate": 0.01}
    artifact = bench.run("reward", "reward-lora", inputs, knobs=knobs)
    adapter = load_file(artifact / "adapter_model.safetensors")
    assert any("score" in name for name in adapter)
    model = load_reward_model(artifact).eval()
    mean = json.loads((artifact / "base.json").read_text())["reward_mean"]
    assert model.config.reward_mean == mean
    with torch.no_grad():
        first, second = (load_reward_model(artifact).eval()(torch.tensor([[5, 6, 7]])).logits for _ in range(2))
    assert torch.equal(first, second)  # a head that was not saved would be drawn anew


def test_a_reward_adapter_starts_from_the_policy_adapter_on_the_same_backbone(bench: Bench) -> None:
    sft = bench.sft("sft-for-reward", {**LORA, "max_steps": 20, "optimizer.learning_rate": 0.01})
    inputs = {"model": sft, "data": bench.comparisons}
    knobs = {**LORA, "max_steps": 1, "optimizer.learning_rate": 1e-12}
    artifact = bench.run("reward", "reward-on-lora", inputs, knobs=knobs)
    assert json.loads((artifact / "base.json").read_text())["base"] == bench.model.name
    before, after = (load_file(path / "adapter_model.safetensors") for path in (sft, artifact))
    assert len([name for name in before if "trainable_tokens" in name]) == 2
    for name, tensor in before.items():
        if "lm_head" not in name:  # a reward model has no output layer
            torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    bench.run("reward", "reward-other-rank", inputs, expect=2, knobs={**knobs, "adapter.rank": 8})
    assert "does not fit the adapter of sft-for-reward" in bench.log()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(bench: Bench) -> None:
    artifact = bench.sft("sft-nan", {"max_steps": 30, "optimizer.learning_rate": 1e20, "save_steps": 1}, expect=1)
    (error,) = [line for line in bench.log().splitlines() if line.startswith("error: ")]
    assert "not finite" in error or "gradient norm" in error
    assert "demo/" in error
    step = int(error.split("step ")[1].split(":")[0])
    assert not artifact.exists()
    saved = [path.name for path in (artifact.parent / "sft-nan.work" / "checkpoints").glob("checkpoint-*")]
    assert all(int(name.rpartition("-")[2]) < step for name in saved)
    for name in saved:
        state = load_file(artifact.parent / "sft-nan.work" / "checkpoints" / name / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_stopped_stage_is_not_finished_and_goes_on_exactly(bench: Bench) -> None:
    knobs = {"max_steps": 8, "save_steps": 2}
    whole = read_manifest(bench.sft("sft-whole", knobs)).digest
    artifact = bench.sft("sft-stopped", knobs, expect=75, signal_at=60, number=signal.SIGTERM)
    assert not artifact.exists()
    assert "stopped on request at step" in bench.log()
    bench.sft("sft-stopped", knobs)
    assert read_manifest(artifact).digest == whole


def test_tokens_of_another_template_are_refused(bench: Bench) -> None:
    foreign = Path(shutil.copytree(bench.demonstrations, bench.root / "artifacts" / "foreign-0001"))
    text = (foreign / "tokens.json").read_text()
    (foreign / "tokens.json").write_text(text.replace('"template_sha256": "', '"template_sha256": "0'))
    inputs = {"model": bench.model, "data": recommitted(foreign)}
    bench.run("sft", "sft-template", inputs, expect=2, knobs={"max_steps": 1})
    assert "made with chat template 0" in bench.log()
