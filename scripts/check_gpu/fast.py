"""How fast training and sampling are on one GPU, against what its matrix products reach, and how much memory they take.

    python scripts/check_gpu/fast.py                       one NVIDIA GPU of 80 GB, no network; sized for four minutes
    python scripts/check_gpu/fast.py --device cpu --tiny   a try of the script itself

MFU is the model FLOPs of the trained tokens, as `posttrain plan` counts them, over seconds and over the rate of a
bfloat16 matrix product of 8192³ on the same machine; what is computed twice is not counted. Seconds are wall time
between two steps, the optimizer's included; the first steps are not counted. Peak memory is `peak_memory_gb` of the
stage's log, loading included; beside it stands what `posttrain plan` estimates for a training step.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lenders  # noqa: F401
import torch
from llamas import Bench
from parts import Figures, Part, Setting, main
from running import peak, stage

from posttrain.models.load import load_policy
from posttrain.plan.families import read_shape
from posttrain.plan.memory import estimate_memory
from posttrain.plan.model import training_flops_per_token
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams

WARM = 3
"""Steps that are not counted."""
COMMON: dict[str, Any] = {"dtype": "bfloat16", "log_steps": 1, "save_steps": 1000, "optimizer": {"learning_rate": 1e-6}}


def bench(setting: Setting, size: str) -> Bench:
    """Return the model of a size and its tokens, or the tiny one."""
    return Bench(setting.work / size, "tiny" if setting.tiny else size, 512 if setting.tiny else 32_000)


def matmul(setting: Setting) -> Figures:
    """Measure the rate of a matrix product, and keep it for the parts that follow."""
    size = 256 if setting.tiny else 8192
    left, right = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    rates = [20 * 2 * size**3 / timed(lambda: [left @ right for _ in range(20)], setting) for _ in range(6)]
    (setting.work / "ceiling.json").write_text(json.dumps(max(rates[1:])), encoding="utf-8")
    return {"TFLOP/s": max(rates[1:]) / 1e12}


def ceiling(setting: Setting) -> float:
    """Return the FLOP/s of a matrix product here, measured before or now."""
    path = setting.work / "ceiling.json"
    if not path.exists():
        matmul(setting)
    return float(json.loads(path.read_text(encoding="utf-8")))


def timed(function: Callable[[], Any], setting: Setting) -> float:
    """Return the seconds of a call, to the end of what it started on the GPU."""
    started = time.perf_counter()
    function()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def tokens_per_second(lines: list[Figures]) -> float:
    """Return the median rate of a log's steps, the first ones left out."""
    steps = [line for line in lines if "loss" in line][WARM:]
    pairs = itertools.pairwise(steps)
    return statistics.median((b["tokens_seen"] - a["tokens_seen"]) / (b["seconds"] - a["seconds"]) for a, b in pairs)


def training(setting: Setting, model: Path, lines: list[Figures], rows: int, length: int) -> Figures:
    """Return rate, MFU, and memory beside its estimate, for micro-batches of so many sequences of a length."""
    shape, rate = read_shape(model), tokens_per_second(lines)
    used = rate * training_flops_per_token(shape, length)
    estimate = estimate_memory(shape, tokens=rows * length, dtype="bfloat16").total / 1e9
    return {"tokens/s": rate, "MFU": used / ceiling(setting), **peak(lines), "estimated GB": estimate}


def sft(setting: Setting) -> Figures:
    """Train on packs of four rows, four packs at once."""
    made, pack = bench(setting, "1B"), 64 if setting.tiny else 2048
    inputs = {"model": made.model(), "data": made.demonstrations(128, pack // 4)}
    knobs = {"packing": True, "pack_length": pack, "global_batch_size": 8, "micro_batch_size": 4, "max_steps": 12}
    return training(setting, inputs["model"], stage("sft", out(setting, "sft"), inputs, **COMMON | knobs), 4, pack)


def dpo(setting: Setting) -> Figures:
    """Train on pairs of a prompt and a response of equal length."""
    made, half = bench(setting, "0.5B"), 16 if setting.tiny else 512
    inputs = {"model": made.model(), "data": made.comparisons(32, half, half)}
    reference = made.path("reference-0001")
    if not reference.exists():
        stage("reference", reference, inputs, dtype="bfloat16")
    inputs["reference"] = reference
    knobs = {"global_batch_size": 8, "micro_batch_size": 4, "max_steps": 12}
    return training(setting, inputs["model"], stage("dpo", out(setting, "dpo"), inputs, **COMMON | knobs), 8, 2 * half)


def ppo(setting: Setting) -> Figures:
    """Run three rollouts of two passes, the first not counted; returns the seconds of each phase."""
    made, tokens, episodes = bench(setting, "0.5B"), 8 if setting.tiny else 128, 8 if setting.tiny else 64
    inputs = {"model": made.model(), "data": made.prompts(episodes, tokens), "reward": made.reward_model()}
    knobs = {"rollout_batch_size": episodes, "global_batch_size": episodes, "micro_batch_size": 8, "ppo_epochs": 2}
    knobs |= {"max_new_tokens": tokens, "max_steps": 6, "missing_eos_penalty": 0.0}
    lines = stage("ppo", out(setting, "ppo"), inputs, **COMMON | knobs)
    steps = [line for line in lines if "loss" in line]
    whole = statistics.mean(steps[end]["seconds"] - steps[end - 2]["seconds"] for end in (3, 5))
    phases = {
        part: statistics.mean(steps[first][f"time/{part}"] for first in (2, 4)) for part in ("rollout", "scoring")
    }
    drawn = statistics.mean(steps[first]["tokens_per_second/rollout"] for first in (2, 4))
    update = {"update s": whole - sum(phases.values()), "tokens/s drawn": drawn}
    return {f"{part} s": seconds for part, seconds in phases.items()} | update | peak(lines)


def sampling(setting: Setting) -> Figures:
    """Let the sampler and `generate` draw as many tokens in turns; returns the median rate of each."""
    made, tokens, rows = bench(setting, "0.5B"), 8 if setting.tiny else 128, 8 if setting.tiny else 64
    model: Any = load_policy(made.model(), "bfloat16").to(setting.device).eval()
    tokenizer, prompts = made.tokenizer(), made.rows_of_words(rows, tokens)
    ids, sampler = torch.tensor(prompts, device=setting.device), Sampler(model, tokenizer, max_batch_size=rows)
    eos = dict.fromkeys([tokenizer.eos_token_id], -100.0)

    def ours() -> int:
        params = SamplingParams(max_tokens=tokens, logit_bias=eos)
        return sum(len(sample.token_ids) for samples in sampler.generate(prompts, params) for sample in samples)

    @torch.no_grad()
    def theirs() -> int:
        mask = torch.ones_like(ids)
        # -1 is no token, so that nothing ends
        drawn = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=True, top_k=0, eos_token_id=-1
        )
        return int(drawn[:, ids.shape[1] :].numel())

    rates: dict[str, list[float]] = {"sampler": [], "generate": []}
    for turn in range(4):
        for name, side in (("sampler", ours), ("generate", theirs)):
            counted: list[int] = []
            seconds = timed(lambda side=side, counted=counted: counted.append(side()), setting)
            if turn:  # the first warms up
                rates[name].append(counted[0] / seconds)
    median = {name: statistics.median(found) for name, found in rates.items()}
    return {f"{name} tokens/s": rate for name, rate in median.items()} | {
        "ratio": median["sampler"] / median["generate"]
    }


def out(setting: Setting, name: str) -> Path:
    """Return where a stage or a trainer writes, emptied."""
    folder = setting.work / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder / "out"


PARTS = [
    Part("matmul", matmul),
    Part("sft_1B", sft, 100),
    Part("ppo_0.5B", ppo, 100),
    Part("sampling_0.5B", sampling, 100),
    Part("dpo_0.5B", dpo, 100),
]

if __name__ == "__main__":
    main(__doc__, PARTS)
