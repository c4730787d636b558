"""Pairs per second and peak memory of reward models and DPO beside TRL's trainers, on the same models and pairs.

    python scripts/bench_preference.py [--stages reward,dpo] [--cases abcde] [--turns 2] [--data DIR] [--keep]

A Llama of 6 layers and width 288 with random weights in float32, vocabulary 4096 for the reward model and 50,283 for
DPO. Both sides are processes that take a step in turn, each over all pairs of the case; the first step is not counted.
TRL gets every pair of a ranked group, sorted by length within a batch, in micro-batches of four pairs; ours have 2,048
tokens, a prompt counted once: three to four groups in (a), (b) and (c), and one in (e). For DPO both sides' references
are counted, ours as the stage train.reference. Peak memory is a step's above the loaded model.
The bound is the arithmetic that must be done, each prompt once (matrix products of the trunk and its attention, for DPO
also the output layer on responses), over the rate of a float32 matrix product in the same run. What is worse by more
than a tenth than the ratios in `scripts/baselines/preference.json` is shown.

(a) prompts of 512 tokens and 2 responses of 64; (b) 128 and 2 of 256; (c) 256 and 4 of 64; (d) lengths of hh_rlhf and
of four ifeval_responses to a prompt, in --data; (e) 1,500 and 2 of 100.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline"}

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from baseline import show
from bench_ppo import HIDDEN, INTERMEDIATE, LAYERS, matmul_rate, put, small_llama, word_tokenizer
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM, TrainerCallback

from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.records import Comparison, untied_pairs
from posttrain.data.tokenize import SCHEMAS

VOCABULARY = {"reward": 4096, "dpo": 50283}
LONGEST = 1700
OUR_TOKENS, THEIR_PAIRS = 2048, 4
"""Of a micro-batch."""
SHAPES = {"a": (512, [64] * 2, 8), "b": (128, [256] * 2, 8), "c": (256, [64] * 4, 4), "e": (1500, [100] * 2, 4)}
"""Prompt, responses, and groups of a step."""
Lengths = list[tuple[int, list[int]]]


def lengths_of(case: str, data: Path) -> Lengths:
    """Return the tokens of each prompt and of its responses, best first."""
    if case != "d":
        prompt, responses, groups = SHAPES[case]
        return [(prompt, responses)] * groups
    found: Lengths = []
    for line in _lines(data / "hh_rlhf" / "harmless_test.jsonl.gz", 8):
        prompt, _, chosen = line["chosen"].rpartition("\n\nAssistant:")
        found.append((_tokens(prompt), [_tokens(chosen), _tokens(line["rejected"].rpartition("\n\nAssistant:")[2])]))
    for line in _lines(data / "ifeval_responses" / "multirank.jsonl.gz", 4):
        found.append((_tokens(line["prompt"]), [_tokens(output["response"]) for output in line["outputs"][:4]]))
    return found


def _lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Return so many lines of a file, from all over it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    return [json.loads(lines[len(lines) * number // count]) for number in range(count)]


def _tokens(text: str) -> int:
    """Return about how many tokens a text has."""
    return min(512, max(1, len(text) // 4))


def build(root: Path, stage: str, lengths: Lengths) -> list[dict[str, Any]]:
    """Write a policy and tokens of ranked groups as artifacts; returns the groups."""
    tokenizer = word_tokenizer(VOCABULARY[stage])
    torch.manual_seed(0)
    LlamaForCausalLM(small_llama(tokenizer, positions=2048)).save_pretrained(root / ".policy")
    tokenizer.save_pretrained(root / ".policy")
    tokenizer = load_tokenizer(put(root, "policy", "model"))
    draw = random.Random(0)
    words = [[draw.randrange(10, 4000) for _ in range(LONGEST)] for _ in range(5)]
    groups = [
        {"id": f"g{number}", "source": "bench", "language": "und", "task": "bench", "prompt_ids": words[4][:prompt]}
        | {"responses_ids": [words[k][:length] for k, length in enumerate(responses)]}
        | {"ranks": list(range(1, len(responses) + 1))}
        for number, (prompt, responses) in enumerate(lengths)
    ]
    (root / ".data").mkdir()
    for split, part in (("train", groups), ("eval", [])):
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMAS[Comparison]), root / ".data" / f"{split}.parquet")
    facts = {
        "record_type": "comparison",
        "max_length": LONGEST,
        "template_sha256": template_digest(tokenizer),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }
    (root / ".data" / "tokens.json").write_text(json.dumps(facts))
    put(root, "data", "tokens")
    return groups


class Turns(TrainerCallback):
    """Waits for its turn before each step, and tells its seconds and the memory that it took above what stood."""

    def __init__(self) -> None:
        self.reports = os.fdopen(int(os.environ["REPORTS"]), "w", buffering=1)
        self.before = _memory("VmRSS")

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.reports.write("{}\n")
        sys.stdin.readline()
        Path("/proc/self/clear_refs").write_text("5")
        self.started, self.worked = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        told = {"seconds": time.perf_counter() - self.started, "cpu": time.process_time() - self.worked}
        self.reports.write(json.dumps({**told, "peak": _memory("VmHWM") - self.before}) + "\n")


def _memory(name: str) -> float:
    """Return a figure of this process's memory in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def run_ours(stage: str, arguments: list[str]) -> None:
    """Run our stage as it is, with turns."""
    module = importlib.import_module(f"posttrain.train.{stage}")
    entry = importlib.import_module("posttrain.stage.entry")
    fit = module.fit

    def fit_in_turns(trainer: Any, *given: Any) -> Any:
        trainer.add_callback(Turns())
        return fit(trainer, *given)

    module.fit = fit_in_turns
    sys.argv[1:] = arguments
    schema, kind = (module.RewardConfig, "reward_model") if stage == "reward" else (module.DpoConfig, "model")
    entry.stage_main(module.run, schema, kind=kind)


def run_theirs(stage: str, root: Path, steps: int) -> None:
    """Run TRL's trainer on every pair of the groups, longest together."""
    import trl
    from datasets import Dataset

    pairs = []
    for group in pq.read_table(root / "data" / "train.parquet").to_pylist():
        for better, worse in untied_pairs(group["ranks"]):
            sides = {"chosen": group["responses_ids"][better], "rejected": group["responses_ids"][worse]}
            if stage == "dpo":
                pairs.append({"prompt_ids": group["prompt_ids"], **{f"{name}_ids": own for name, own in sides.items()}})
            else:
                pairs.append({f"{name}_ids": [*group["prompt_ids"], *own] for name, own in sides.items()})
    pairs.sort(key=lambda pair: max(len(pair["chosen_ids"]), len(pair["rejected_ids"])))
    micro = max(size for size in range(1, THEIR_PAIRS + 1) if len(pairs) % size == 0)
    knobs = {
        "output_dir": str(root / "theirs"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": len(pairs) // micro,
        "max_steps": steps,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-6,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "max_length": None,
    }
    tokenizer = load_tokenizer(root / "policy")
    common = {"train_dataset": Dataset.from_list(pairs), "processing_class": tokenizer}
    if stage == "dpo":
        model = LlamaForCausalLM.from_pretrained(root / "policy", dtype=torch.float32)
        trl.DPOTrainer._prepare_dataset = lambda _self, rows, *_args, **_more: rows  # they are tokens already
        trainer: Any = trl.DPOTrainer(model=model, args=trl.DPOConfig(**knobs), **common)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            root / "policy", num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
        )
        trainer = trl.RewardTrainer(model=model, args=trl.RewardConfig(**knobs), **common)
    trainer.add_callback(Turns())
    trainer.train()


class Side:
    """A process that takes steps when it is told to."""

    def __init__(self, command: list[str], threads: int, log: Path) -> None:
        reading, writing = os.pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "REPORTS": str(writing)}
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[writing]
            )
        os.close(writing)
        self.reports = os.fdopen(reading)
        self.read()

    def read(self) -> dict[str, float]:
        line = self.reports.readline()
        if not line:
            sys.exit(self.log.read_text()[-3000:])
        told: dict[str, float] = json.loads(line)
        return told

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.read()

    def ready(self) -> None:
        self.read()


def commands(root: Path, stage: str, groups: int, steps: int) -> dict[str, list[str]]:
    knobs = {"global_batch_size": groups, "micro_batch_tokens": OUR_TOKENS, "max_steps": steps}
    knobs |= {"optimizer.learning_rate": 1e-6, "log_steps": 1000, "save_steps": 1000, "tracking.wandb": "disabled"}
    inputs = {"model": root / "policy", "data": root / "data"}
    if stage == "dpo":
        inputs["reference"] = root / "reference"
        knobs |= {"pairs": "all"}
    given = [f"inputs.{name}={path}" for name, path in inputs.items()] + [f"output={root / 'ours'}"]
    given += [f"{name}={value}" for name, value in knobs.items()]
    me = [sys.executable, __file__, "--side"]
    return {"ours": [*me, "ours", stage, *given], "theirs": [*me, "theirs", stage, str(root), str(steps)]}


def reference_seconds(root: Path, threads: int) -> float:
    """Run the reference stage and return the seconds that its forward passes took."""
    given = [f"inputs.model={root / 'policy'}", f"inputs.data={root / 'data'}", f"output={root / 'reference'}"]
    command = [sys.executable, __file__, "--side", "reference", *given, "tracking.wandb=disabled", "batch_tokens=2048"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    return float(line.split()[1])


def run_reference(arguments: list[str]) -> None:
    """Run the stage of the reference's log-probabilities, and print how long the training split took."""
    module = importlib.import_module("posttrain.train.reference")
    entry = importlib.import_module("posttrain.stage.entry")
    scored = module._with_shared_prompts

    def timed(model: Any, groups: Any, batch_tokens: int) -> Any:
        started = time.perf_counter()
        found = scored(model, groups, batch_tokens)
        if groups:
            print("SECONDS", time.perf_counter() - started, flush=True)
        return found

    module._with_shared_prompts = timed
    sys.argv[1:] = arguments
    entry.stage_main(module.run, module.ReferenceConfig, kind="reference_logps")


def must_do(stage: str, groups: list[dict[str, Any]]) -> float:
    """Return the FLOPs of a step's matrix products with each prompt once; a backward pass is twice its forward."""
    total = 0.0
    for group in groups:
        prompt, responses = len(group["prompt_ids"]), [len(own) for own in group["responses_ids"]]
        tokens = prompt + sum(responses)
        seen = prompt**2 / 2 + sum(own * (prompt + own / 2) for own in responses)
        trunk = LAYERS * (2 * tokens * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE) + 4 * seen * HIDDEN)
        head = 2 * HIDDEN * VOCABULARY["dpo"] * sum(responses) if stage == "dpo" else 0
        total += (4 if stage == "dpo" else 3) * (trunk + head)  # the reference is a forward pass more
    return total


def measured(stage: str, case: str, options: argparse.Namespace) -> dict[str, float]:
    """Run a case of a stage on both sides, and print what was found; returns its figures."""
    root = Path(tempfile.mkdtemp(prefix="bench-preference-"))
    sides: dict[str, Side] = {}
    try:
        groups = build(root, stage, lengths_of(case, options.data))
        pairs = sum(len(untied_pairs(group["ranks"])) for group in groups)
        before = reference_seconds(root, options.threads) if stage == "dpo" else 0.0
        rows = pairs if stage == "dpo" else len(groups)
        for name, command in commands(root, stage, rows, options.turns + 2).items():
            sides[name] = Side(command, options.threads, root / f"{name}.log")
        told: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for turn in range(options.turns + 1):
            for name, side in sides.items():
                told[name].append(side.step())
                if turn < options.turns:
                    side.ready()
    finally:
        for side in sides.values():
            side.process.kill()
            side.process.wait()
        shutil.rmtree(root)
    seconds = {name: statistics.median(step["seconds"] for step in steps[1:]) for name, steps in told.items()}
    cpu = {name: statistics.median(step["cpu"] for step in steps[1:]) for name, steps in told.items()}
    peaks = {name: max(step["peak"] for step in steps[1:]) for name, steps in told.items()}
    seconds["ours"] += before
    flops, rate = must_do(stage, groups), matmul_rate()
    bound, name = flops / rate, f"{stage}_{case}"
    print(f"\n{name}: {len(groups)} groups, {pairs} pairs")
    print(f"  bound  {bound:7.2f} s: {flops / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s")
    for side, took in seconds.items():
        rate_and_memory = f"{pairs / took:6.2f} pairs/s, {peaks[side]:6.0f} MB above the model"
        print(f"  {side:<7}{took:7.2f} s a step, {rate_and_memory}; training took {cpu[side]:.2f} s of processors")
    sys.stdout.flush()
    return {
        f"{name}_speed": seconds["theirs"] / seconds["ours"],
        f"{name}_memory": peaks["ours"] / peaks["theirs"],
        f"{name}_share_of_bound": bound / seconds["ours"],
    }


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, *rest = sys.argv[2:]
        if side == "ours":
            run_ours(rest[0], rest[1:])
        elif side == "theirs":
            run_theirs(rest[0], Path(rest[1]), int(rest[2]))
        else:
            run_reference(rest)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="reward")
    parser.add_argument("--cases", default="abcde")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--keep", action="store_true", help="make the figures those that later runs compare with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}")
    figures: dict[str, float] = {}
    for stage in options.stages.split(","):
        for case in options.cases:
            if case == "d" and not options.data.is_dir():
                print(f"\n{stage}_d: left out, {options.data} is not there")
                continue
            figures |= measured(stage, case, options)
    show("preference", figures, options.keep)


if __name__ == "__main__":
    main()
