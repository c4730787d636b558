"""Whether training is right on one GPU: every method in bfloat16 under every engine, twenty steps on random Llamas.

    python scripts/check_gpu/right.py                       one NVIDIA GPU, no network; sized for four minutes
    python scripts/check_gpu/right.py --device cpu --tiny   a try of the script itself

Every step's batch is the whole training split, so that the first loss, before any update, is a number that can be
computed from the model with transformers alone, in float32: SFT's and the reward model's have to agree with it, DPO's
with ln 2. PPO and GRPO have to find the log-probabilities that they sampled with. SFT and PPO are killed by SIGKILL
between two checkpoints and have to come to their end, with the same losses in the steps that both runs made.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lenders  # noqa: F401
import pyarrow.parquet as pq
import running
import torch
from build_artifacts import build_comparisons, build_demonstrations, build_model, build_prompts, build_reward_model
from parts import Figures, Part, Setting, Skipped, main
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from posttrain.models.packing import best_fit_decreasing

STEPS = 20
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}
PACK = 128
TOLERANCE = {"sft": 1e-2, "reward": 2e-2, "dpo": 1e-3}
"""Of a first loss in bfloat16 against float32; DPO's compares two passes in bfloat16, whose difference beta shrinks."""
MOST_DIFFERENCE = 2e-2
"""Nats by which the log-probability of a sampled token may differ, on average, between sampler and trainer."""
REPEATS = 1e-2
"""Losses after a resume against those before; on one CPU process they are the same."""
COMMON: dict[str, Any] = {"dtype": "bfloat16", "log_steps": 1, "max_steps": STEPS, "micro_batch_size": 8}
ROLLOUTS = {**COMMON, "rollout_batch_size": 16, "global_batch_size": 8, "micro_batch_size": 4, "max_new_tokens": 16}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {**ROLLOUTS, "ppo_epochs": 2, "optimizer": {"learning_rate": 1e-4}},
    "grpo": {**ROLLOUTS, "samples_per_prompt": 4, "optimizer": {"learning_rate": 1e-4}},
}


def bench(setting: Setting, name: str) -> tuple[Path, Path]:
    """Return an empty folder for a part, and its model."""
    root = setting.work / name
    shutil.rmtree(root, ignore_errors=True)
    return root, build_model(root, attention_dropout=0.0, shape={} if setting.tiny else SMALL)


def require(engine: str) -> None:
    """Raise Skipped where an engine is not installed."""
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise Skipped("deepspeed is not installed")


def first_loss(name: str, lines: list[Figures], expected: float, tolerance: float | None = None) -> Figures:
    """Check a log's first loss, its length and its numbers, and return the figures."""
    running.finite(lines)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS, f"{len(losses)} steps of {STEPS}"
    allowed = tolerance or TOLERANCE[name]
    assert abs(losses[0] - expected) < allowed, f"first loss {losses[0]:.5f}, expected {expected:.5f} ± {allowed}"
    return {"first loss": losses[0], "expected": expected, "last loss": losses[-1], **running.peak(lines)}


def sft(setting: Setting, name: str, engine: str, packed: bool = False) -> Figures:
    """Train on demonstrations; packs have the same loss, since no row of them sees another."""
    require(engine)
    root, model = bench(setting, name)
    data = build_demonstrations(root, model)
    rows = pq.read_table(data / "train.parquet").to_pylist()
    packs = best_fit_decreasing([len(row["input_ids"]) for row in rows], PACK)
    knobs = {"packing": True, "pack_length": PACK, "global_batch_size": len(packs)} if packed else {}
    how = {"global_batch_size": len(rows), "optimizer": {"learning_rate": 1e-3}, **knobs}
    lines = running.stage("sft", root / "out", {"model": model, "data": data}, engine, **COMMON | how)
    expected, vocabulary = nll(model, rows)
    assert abs(expected - math.log(vocabulary)) < 0.5, f"a random model's loss is {expected}, far from ln {vocabulary}"
    return first_loss("sft", lines, expected) | {"ln V": math.log(vocabulary)}


@torch.no_grad()
def nll(directory: Path, rows: list[Figures]) -> tuple[float, int]:
    """Return a model's mean loss over the trained tokens of all rows, and its vocabulary's size."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        trained = labels != -100
        total -= float(logps[trained].gather(1, labels[trained, None]).sum())
        count += int(trained.sum())
    return total / count, model.config.vocab_size


def reward(setting: Setting, name: str, engine: str) -> Figures:
    """Train a reward model on ranked groups."""
    require(engine)
    root, model = bench(setting, name)
    data = build_comparisons(root, model)
    groups = pq.read_table(data / "train.parquet").to_pylist()
    how = {"global_batch_size": len(groups), "centering_coefficient": 0.0, "optimizer": {"learning_rate": 1e-3}}
    lines = running.stage("reward", root / "out", {"model": model, "data": data}, engine, **COMMON | how)
    if engine == "zero3" and setting.device == "cuda":  # it draws the new head on the GPU, whose numbers are others
        return first_loss("reward", lines, math.log(2), tolerance=0.3)
    return first_loss("reward", lines, ranking_loss(model, groups))


@torch.no_grad()
def ranking_loss(directory: Path, groups: list[Figures]) -> float:
    """Return the mean over groups of the mean over their pairs of ``-log σ(better - worse)``, under the seed's head."""
    set_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32)
    total = 0.0
    for group in groups:
        ids = [torch.tensor([*group["prompt_ids"], *response])[None] for response in group["responses_ids"]]
        scores = [float(model(input_ids=row).logits) for row in ids]
        ranked = [score for _, score in sorted(zip(group["ranks"], scores, strict=True))]
        gaps = [better - worse for place, better in enumerate(ranked) for worse in ranked[place + 1 :]]
        total += sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps)
    return total / len(groups)


def dpo(setting: Setting, name: str, engine: str) -> Figures:
    """Train on pairs, from the model that the reference is."""
    require(engine)
    root, model = bench(setting, name)
    inputs = {"model": model, "data": build_comparisons(root, model)}
    running.stage("reference", root / "artifacts" / "reference-0001", inputs, dtype="bfloat16")
    inputs["reference"] = root / "artifacts" / "reference-0001"
    pairs = pq.read_table(inputs["data"] / "train.parquet").num_rows
    how = {"global_batch_size": pairs, "optimizer": {"learning_rate": 1e-4}}
    return first_loss("dpo", running.stage("dpo", root / "out", inputs, engine, **COMMON | how), math.log(2))


def rollout_inputs(root: Path, model: Path) -> dict[str, Path]:
    """Return what PPO and GRPO read."""
    return {"model": model, "data": build_prompts(root, model), "reward": build_reward_model(root, model)}


def rollouts(setting: Setting, name: str, engine: str, method: str) -> Figures:
    """Train on rollouts, whose log-probabilities the first update of each has to find again."""
    require(engine)
    root, model = bench(setting, name)
    lines = running.stage(method, root / "out", rollout_inputs(root, model), engine, **METHODS[method])
    running.finite(lines)
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == STEPS, f"{len(steps)} steps of {STEPS}"
    found = [line["policy/rollout_difference"] for line in steps if "policy/rollout_difference" in line]
    assert max(found) < MOST_DIFFERENCE, f"rollout_difference {max(found):.4f}, at most {MOST_DIFFERENCE}"
    scores = [line["objective/scores"] for line in steps if "objective/scores" in line]
    return {"rollouts": len(found), "rollout difference": max(found), "last score": scores[-1]} | running.peak(lines)


def resume(setting: Setting, name: str, method: str) -> Figures:
    """Kill a stage after a checkpoint, start it again, and compare the steps that were made twice."""
    root, model = bench(setting, name)
    inputs = {"model": model, "data": build_demonstrations(root, model)}
    how = {**COMMON, "global_batch_size": 56, "micro_batch_size": 4, "optimizer": {"learning_rate": 1e-3}}
    if method == "ppo":
        inputs, how = rollout_inputs(root, model), METHODS["ppo"]
    how = {**how, "save_steps": 5, "max_steps": 2 * STEPS}
    work = root / "out.work"
    process, log = running.start(method, root / "out", inputs, "single", **how)
    before = running.kill_at(process, work / "metrics.jsonl", work / "checkpoints" / "checkpoint-5", step=7)
    lines = running.stage(method, root / "out", inputs, **how)
    running.finite(lines)
    assert "resuming from checkpoint-" in log.read_text(encoding="utf-8"), "the second run began anew"
    after = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(after) == list(range(1, 2 * STEPS + 1)), f"steps {sorted(after)}"
    worst = max(abs(line["loss"] - after[line["step"]]) for line in before if "loss" in line)
    assert worst <= (0 if setting.device == "cpu" else REPEATS), f"a loss differs by {worst} after the resume"
    return {"killed after step": before[-1]["step"], "largest difference": worst, "last loss": after[2 * STEPS]}


def parts() -> list[Part]:
    """Return all parts, those first that matter most."""
    checks: dict[str, Any] = {"sft": sft, "dpo": dpo, "reward": reward}
    checks |= {method: partial(rollouts, method=method) for method in ("ppo", "grpo")}
    found = [Part("sft_packed.single", partial(sft, name="sft_packed.single", engine="single", packed=True), 90)]
    for engine in ("single", "fsdp2", "zero3"):
        for method in ("sft", "ppo", "dpo", "grpo", "reward"):
            name = f"{method}.{engine}"
            found.append(Part(name, partial(checks[method], name=name, engine=engine), 90))
        if engine == "single":
            found += [Part(f"resume.{m}", partial(resume, name=f"resume.{m}", method=m), 120) for m in ("sft", "ppo")]
    return found


if __name__ == "__main__":
    main(__doc__, parts(), jobs=4)
