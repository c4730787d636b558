"""Tokens per second and peak memory of SFT beside TRL's SFTTrainer, padded and packed, on the same model and rows.

    python scripts/bench_sft.py [--cases ab] [--threads 2] [--turns 2] [--short] [--keep]

A Llama of 6 layers and width 288 with random weights and tied embeddings, rows with the lengths of grade-school
problems and their worked solutions (lognormal, about 55 and 120 tokens), trained on the solutions alone, 16 rows a
step, float32, micro-batches of 8. The sides run in turns, each in a process of its own; a process's first step is not
counted. TRL's packs (bfd) have 1,024 tokens, two a step, which is about as many. The bound is the arithmetic that must
be done (matrix products of the trunk on all tokens, of the output layer on trained ones, counted below) over the rate
of a float32 matrix product in the same run. Padded steps have the same rows on both sides, hence the same losses.

(a) vocabulary 50,283, 20 million parameters; (b) 4,096. `--short` is (a), one turn of two steps. What is worse by more
than a tenth than the ratios in `scripts/baselines/sft.json` is shown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from baseline import show
from bench_ppo import HIDDEN, INTERMEDIATE, LAYERS, matmul_rate, put, run, small_llama, word_tokenizer
from transformers import LlamaForCausalLM

from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.records import IGNORED, Demonstration
from posttrain.data.tokenize import SCHEMAS
from posttrain.train.engine.batching import EpochStream

HERE = Path(__file__).resolve().parent
VOCABULARIES = {"a": 50283, "b": 4096}
ROWS, MICRO, PACKS, PACK_LENGTH, RATE, SEED = 16, 8, 2, 1024, 1e-3, 0
SIDES = ("ours", "padded", "bfd")
Found = dict[str, Any]


def build(root: Path, vocab: int, steps: int) -> Found:
    """Write model and rows as artifacts; returns their places, and the rows in the order of the steps."""
    tokenizer = word_tokenizer(vocab)
    torch.manual_seed(0)
    LlamaForCausalLM(small_llama(tokenizer, PACK_LENGTH, tied=True)).save_pretrained(root / ".model")
    tokenizer.save_pretrained(root / ".model")
    model = put(root, "model", "model")
    tokenizer = load_tokenizer(model)
    data = rows_of_words(vocab, steps * ROWS, tokenizer.eos_token_id)
    (root / ".data").mkdir()
    common = {"source": "bench", "language": "und", "task": "words"}
    named = [{"id": f"d{number}", **common, **row} for number, row in enumerate(data)]
    for split, part in (("train", named), ("eval", [])):
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMAS[Demonstration]), root / ".data" / f"{split}.parquet")
    facts = {"template_sha256": template_digest(tokenizer), "tokenizer_sha256": tokenizer_digest(tokenizer)}
    described = {"record_type": "demonstration", "max_length": PACK_LENGTH, "loss_on": "completion", **facts}
    (root / ".data" / "tokens.json").write_text(json.dumps(described))
    order = EpochStream(len(data), SEED).take(len(data))
    return {"model": model, "data": put(root, "data", "tokens"), "rows": [data[number] for number in order]}


def rows_of_words(vocab: int, count: int, eos: int) -> list[Found]:
    """Return rows of words, the first few of which are the most frequent; a solution ends with EOS."""
    generator = random.Random(0)
    words = range(10, vocab - 3)
    weights = list(itertools.accumulate(1 / (10 + number) for number in range(len(words))))
    rows = []
    for _ in range(count):
        shared, own = generator.gauss(0, 1), generator.gauss(0, 1)
        prompt = round(2.718281828 ** (3.94 + 0.356 * shared))
        answer = round(2.718281828 ** (4.71 + 0.416 * (0.55 * shared + 0.835 * own)))
        ids = [*generator.choices(words, cum_weights=weights, k=prompt + answer), eos]
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


def ours(root: Path, made: Found, steps: int, threads: int, turn: int) -> Found:
    """Run our stage."""
    output = root / f"ours-{turn}"
    knobs = {
        "global_batch_size": ROWS,
        "micro_batch_size": MICRO,
        "max_steps": steps,
        "optimizer.learning_rate": RATE,
        "optimizer.schedule": "constant",
        "log_steps": 1,
        "save_steps": 1000,
        "seed": SEED,
    }
    inputs = [f"inputs.{name}={made[name]}" for name in ("model", "data")]
    command = [sys.executable, "-m", "posttrain.train.sft", *inputs, f"output={output}", "tracking.wandb=disabled"]
    peak, _ = run([*command, *(f"{name}={value}" for name, value in knobs.items())], threads)
    lines = [json.loads(line) for line in (output / "logs" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    seconds = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(lines)]
    tokens = lines[-1]["tokens_seen"] / len(lines)
    return {"seconds": seconds, "tokens": tokens, "losses": [line["loss"] for line in lines], "peak": peak}


def theirs(root: Path, made: Found, steps: int, threads: int, turn: int, packing: bool) -> Found:
    """Run TRL's trainer."""
    order = {
        "model": str(made["model"]),
        "data": made["rows"],
        "packing": packing,
        "packs": PACKS,
        "pack_length": PACK_LENGTH,
        "rows": ROWS,
        "micro_batch_size": MICRO,
        "steps": steps,
        "learning_rate": RATE,
        "threads": threads,
        "work": str(root / f"theirs-{packing}-{turn}"),
    }
    path = root / "order.json"
    path.write_text(json.dumps(order))
    peak, printed = run([sys.executable, str(HERE / "bench_sft_trl.py"), str(path)], threads)
    (line,) = [line for line in printed.splitlines() if line.startswith("FOUND ")]
    return {**json.loads(line.removeprefix("FOUND ")), "peak": peak}


def must_do(vocab: int, rows: list[Found]) -> tuple[float, float]:
    """Return the FLOPs a step of trunk and output layer; a backward pass is twice its forward.

    Attention is counted where it looks: back, and in the row alone.
    """
    linear = 2 * LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
    tokens = sum(len(row["input_ids"]) for row in rows)
    looks = sum(len(row["input_ids"]) * (len(row["input_ids"]) + 1) / 2 for row in rows)
    trained = sum(label != IGNORED for row in rows for label in row["labels"])
    steps = len(rows) / ROWS
    return 3 * (tokens * linear + 4 * LAYERS * HIDDEN * looks) / steps, 3 * 2 * trained * HIDDEN * vocab / steps


def report(case: str, found: dict[str, list[Found]], made: Found, rates: list[float]) -> dict[str, float]:
    """Print what was found of a case; returns its figures."""
    vocab = VOCABULARIES[case]
    speeds = {
        side: statistics.median(turn["tokens"] / second for turn in turns for second in turn["seconds"])
        for side, turns in found.items()
    }
    peaks = {side: statistics.median(turn["peak"] for turn in turns) for side, turns in found.items()}
    trunk, head = must_do(vocab, made["rows"])
    bound = (trunk + head) / statistics.median(rates)
    tokens = found["ours"][0]["tokens"]
    print(f"\n({case}) vocabulary {vocab}, {tokens:.0f} tokens a step")
    for side in SIDES:
        losses = " ".join(f"{loss:.4f}" for loss in found[side][0]["losses"])
        print(f"  {side:<7}{speeds[side]:8.0f} tokens/s, {peaks[side]:5.0f} MB, losses {losses}")
    print(
        f"  {trunk / 1e9:.0f} GFLOP of the trunk and {head / 1e9:.0f} of the output layer, at least {bound:.2f} s a "
        f"step at {statistics.median(rates) / 1e9:.0f} GFLOP/s; ours takes {tokens / speeds['ours']:.2f} s"
    )
    figures = {
        f"sft_{case}_over_padded": speeds["ours"] / speeds["padded"],
        f"sft_{case}_over_bfd": speeds["ours"] / speeds["bfd"],
        f"sft_{case}_memory": peaks["ours"] / peaks["padded"],
        f"sft_{case}_share_of_bound": bound / (tokens / speeds["ours"]),
    }
    gap = max(abs(one - other) for one, other in zip(*(found[s][0]["losses"] for s in SIDES[:2]), strict=True))
    assert gap < 1e-3, f"the losses of the same rows differ by {gap:.2g}"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="ab")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--keep", action="store_true", help="make the figures those that later runs compare with")
    options = parser.parse_args()
    if options.short:
        options.cases, options.turns, options.steps = "a", 1, 2
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}")
    figures: dict[str, float] = {}
    for case in options.cases:
        root = Path(tempfile.mkdtemp(prefix="bench-sft-"))
        try:
            made = build(root, VOCABULARIES[case], options.steps)
            found: dict[str, list[Found]] = {side: [] for side in SIDES}
            rates = []
            for turn in range(options.turns):
                arguments = (root, made, options.steps, options.threads, turn)
                found["ours"].append(ours(*arguments))
                found["padded"].append(theirs(*arguments, packing=False))
                found["bfd"].append(theirs(*arguments, packing=True))
                rates.append(matmul_rate())
            figures |= report(case, found, made, rates)
        finally:
            shutil.rmtree(root)
    show("sft", figures, options.keep)


if __name__ == "__main__":
    main()
