"""Training beside TRL's own trainers: the same model, rows and shapes, in turns; the median ratio of tokens/s.

    python scripts/check_gpu/beside.py                       one NVIDIA GPU of 80 GB, no network; again until it is done
    python scripts/check_gpu/beside.py --device cpu --tiny   a try of the script itself

A part is one turn: a stage, and the stock trainer with the settings of the stage, each in a process of its own and each
first in every other turn. Both train in bfloat16 on float32 weights, without gradient checkpointing, each with the
attention that it takes by itself. DPO has its reference's log-probabilities beforehand on both sides. A rate is the
tokens of a step over the median seconds of a step; the first steps are not counted.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fast import COMMON, bench, out
from parts import Figures, Part, Setting, main
from running import CHILDREN, last_words, stage

HERE = Path(__file__).resolve().parent
TURNS = 3
WARM = 3
STEPS = 12
BATCHES = {"global_batch_size": 8, "micro_batch_size": 4, "max_steps": STEPS}


def sft(setting: Setting, turn: int) -> Figures:
    """Train on packs of four rows."""
    made, pack = bench(setting, "1B"), 64 if setting.tiny else 2048
    data = made.demonstrations(128, pack // 4)
    knobs = {"packing": True, "pack_length": pack, **BATCHES}
    inputs = {"model": made.model(), "data": data}
    rows = [{"input_ids": row["input_ids"]} for row in read(data)]
    return one_turn(setting, "sft", turn, inputs, knobs, rows, pack, 8 * pack)


def dpo(setting: Setting, turn: int) -> Figures:
    """Train on pairs, which TRL gets as the texts that give the same tokens."""
    made, half = bench(setting, "0.5B"), 16 if setting.tiny else 512
    inputs = {"model": made.model(), "data": made.comparisons(32, half, half), "reference": made.path("reference-0001")}
    if not inputs["reference"].exists():
        stage("reference", inputs["reference"], {name: inputs[name] for name in ("model", "data")}, dtype="bfloat16")
    rows = []
    for row in read(inputs["data"]):
        chosen, rejected = (words(response[:-1]) for response in row["responses_ids"])  # TRL adds EOS
        rows.append({"prompt": words(row["prompt_ids"]), "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return one_turn(setting, "dpo", turn, inputs, BATCHES, rows, 2 * half, 8 * 2 * 2 * half)


def read(tokens: Path) -> list[Figures]:
    """Return the training rows of a token artifact."""
    rows: list[Figures] = pq.read_table(tokens / "train.parquet").to_pylist()
    return rows


def words(ids: list[int]) -> str:
    """Return the text of token ids."""
    return " ".join(f"w{number}" for number in ids)


def one_turn(
    setting: Setting,
    method: str,
    turn: int,
    inputs: dict[str, Path],
    knobs: Figures,
    rows: list[Figures],
    max_length: int,
    step_tokens: int,
) -> Figures:
    """Run both sides once; returns the tokens per second of each, and how many times as fast ours is."""
    name = f"{method}-{turn}"
    order = {"method": method, "model": str(inputs["model"]), "rows": rows, "max_length": max_length, **BATCHES}

    def ours() -> float:
        lines = [line for line in stage(method, out(setting, name), inputs, **COMMON | knobs) if "loss" in line]
        seen = {after["tokens_seen"] - before["tokens_seen"] for before, after in itertools.pairwise(lines)}
        assert seen == {step_tokens}, f"steps of {seen} tokens, expected {step_tokens}"
        return statistics.median(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(lines[WARM:]))

    def theirs() -> float:
        return statistics.median(stock(out(setting, f"{name}-stock"), order)[WARM:])

    sides = [("ours", ours), ("TRL", theirs)][:: 1 if turn % 2 else -1]
    rates = {side: step_tokens / seconds() for side, seconds in sides}
    return {"tokens/s": rates["ours"], "TRL tokens/s": rates["TRL"], "ratio": rates["ours"] / rates["TRL"]}


def stock(work: Path, order: Figures) -> list[float]:
    """Run the stock trainer in a process of its own, and return the seconds of its steps."""
    path, log = work.with_suffix(".json"), work.with_suffix(".log")
    path.write_text(json.dumps({**order, "work": str(work)}), encoding="utf-8")
    with log.open("wb") as file:
        done = subprocess.run([sys.executable, HERE / "stock.py", path], env=CHILDREN, stdout=file, stderr=file)
    assert done.returncode == 0, f"the stock trainer: {last_words(log)}"
    (line,) = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("SECONDS ")]
    seconds: list[float] = json.loads(line.removeprefix("SECONDS "))
    return seconds


def medians(found: dict[str, Figures]) -> list[str]:
    """Return a line for each method with the median ratio of its turns."""
    lines = []
    for method in ("sft", "dpo"):
        ratios = [figures["ratio"] for name, figures in found.items() if name.startswith(method)]
        if ratios:
            lines.append(
                f"{method}: {statistics.median(ratios):.2f} times TRL's tokens/s, median of {len(ratios)} turns"
            )
    return lines


def parts() -> list[Part]:
    """Return the turns of both methods, one of each after the other."""
    methods: dict[str, Any] = {"sft": sft, "dpo": dpo}
    turns = [(turn, method) for turn in range(1, TURNS + 1) for method in methods]
    return [Part(f"{method}.{turn}", lambda s, m=method, t=turn: methods[m](s, t), 120) for turn, method in turns]


if __name__ == "__main__":
    main(__doc__, parts(), closing=medians)
