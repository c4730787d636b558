"""Memory and losses of PPO on one process and on two that hold the weights in parts.

    python scripts/bench_sharded_ppo.py --layers 24

A random Llama of width 1024 (24 layers: 0.31 B parameters) learns from a reward model of its shape, beside a reference
and with `critic.kind=shared`, in float32 on CPUs. Memory is the peak of each process's resident set, less what it had
when it was forked off one that holds the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from build_artifacts import ENVIRONMENT, build_model, build_prompts, build_reward_model
from forked_ranks import distributed, logs_of, start_ranks, work_order

ROWS = {"rollout_batch_size": 4, "global_batch_size": 4, "micro_batch_size": 2, "max_new_tokens": 8, "rollout_batch": 4}
KNOBS: dict[str, Any] = {
    **ROWS,
    "ppo_epochs": 1,
    "max_steps": 2,
    "save_steps": 1000,
    "log_steps": 1,
    "critic": {"kind": "shared"},
    "optimizer": {"learning_rate": 1e-5},
}


def in_child(make: Callable[[], object]) -> None:
    """Make something in a process of its own, so that this one stays small."""
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
        return
    code = 1
    try:
        make()
        code = 0
    finally:
        os._exit(code)


def build(root: Path, layers: int) -> None:
    """Commit the policy, the reward model and the prompts."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": layers, "num_attention_heads": 16}
    model = build_model(root, attention_dropout=0.0, shape={**shape, "num_key_value_heads": 16})
    build_reward_model(root, model)
    build_prompts(root, model)


def of_status(pid: int, name: str) -> float:
    """Return a figure of /proc/PID/status in 10⁹ bytes; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{name}:")), 0.0)


def measured(root: Path, engine: str, processes: int) -> tuple[list[float], list[float]]:
    """Train; return the peak of each process in gigabytes, and the losses."""
    artifacts = root / "artifacts"
    inputs = {"model": artifacts / "base-0001", "data": artifacts / "prompts-0001", "reward": artifacts / "reward-0001"}
    output = artifacts / f"ppo-{engine}{processes}"
    spec = work_order("ppo", output, inputs, distributed(engine, processes), **KNOBS)
    before = of_status(os.getpid(), "VmRSS")
    left = start_ranks("ppo", spec, processes)
    peaks = dict.fromkeys(left, 0.0)
    while left:
        for pid in list(left):
            peaks[pid] = max(peaks[pid], of_status(pid, "VmHWM") - before)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                left.remove(pid)
                assert status == 0, logs_of(spec)[-4000:]
        time.sleep(0.1)
    lines = (output / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return list(peaks.values()), [row["loss"] for line in lines if "loss" in (row := json.loads(line))]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--engines", nargs="+", default=["fsdp2", "zero3"])
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        in_child(lambda: build(root, asked.layers))
        print("| engine | processes | peak of each, GB | losses |\n|---|---|---|---|", flush=True)
        for engine, processes in [("single", 1), *((engine, 2) for engine in asked.engines)]:
            peaks, losses = measured(root, engine, processes)
            shown = ", ".join(f"{peak:.2f}" for peak in peaks), ", ".join(f"{loss:.6f}" for loss in losses)
            print(f"| `{engine}` | {processes} | {shown[0]} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    main()
