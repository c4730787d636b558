"""Peak memory of training stages on CPU beside what `posttrain plan` estimates.

    python scripts/bench_plan.py                     three shapes, four kinds of stages; ten minutes on two quiet cores
    python scripts/bench_plan.py --shapes wide --stages sft dpo

Each stage runs in a process of its own, from a work order. What is measured is how far the resident memory of that
process rises in its second step, over what stood there before: weights and the optimizer's states, which are counted.
glibc is told to give freed blocks back at once, so that what is resident is what is in use.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "check_gpu")]

VOCABULARY, LENGTH, ROWS = 4096, 128, 8
SHAPES = {
    "wide": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8},
    "deep": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 14, "num_attention_heads": 8},
    "inner": {"hidden_size": 384, "intermediate_size": 3072, "num_hidden_layers": 5, "num_attention_heads": 12},
}
STAGES = ("sft", "reward", "dpo", "ppo")
MIB = 1 << 20
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


def knobs_of(stage: str) -> dict[str, Any]:
    """Return the knobs of a stage of two steps."""
    common: dict[str, Any] = {
        "global_batch_size": ROWS,
        "micro_batch_size": ROWS,
        "max_steps": 2,
        "save_steps": 1000,
        "log_steps": 1,
        "optimizer": {"learning_rate": 1e-6},
    }
    if stage == "ppo":
        common |= {"rollout_batch_size": ROWS, "ppo_epochs": 1, "max_new_tokens": LENGTH // 2, "rollout_batch": ROWS}
    return common


def measured(stage: str, work: Path, shape: str) -> tuple[float, float]:
    """Return what a stage took at its peak, and what is planned for it, in bytes."""
    import lenders  # noqa: F401
    import llamas
    from forked_ranks import distributed, work_order

    from posttrain.plan.families import read_shape

    llamas.SIZES[shape] = SHAPES[shape]
    bench = llamas.Bench(work / shape, shape, VOCABULARY)
    half = LENGTH // 2
    data = {
        "sft": lambda: bench.demonstrations(ROWS, LENGTH),
        "reward": lambda: bench.comparisons(ROWS, half, half),
        "dpo": lambda: bench.comparisons(ROWS, half, half),
        "ppo": lambda: bench.prompts(ROWS, half),
    }
    inputs = {"model": bench.model(), "data": data[stage]()}
    if stage == "ppo":
        inputs["reward"] = bench.reward_model()
    if stage == "dpo":
        inputs["reference"] = bench.path("reference-0001")
        if not inputs["reference"].exists():
            order = {name: inputs[name] for name in ("model", "data")}
            run(work_order("reference", inputs["reference"], order, distributed("single", 1)), "reference")
    spec = work_order(stage, bench.path(f"{stage}-0001"), inputs, distributed("single", 1), **knobs_of(stage))
    rise = run(spec, stage)
    plan = planned(stage, read_shape(inputs["model"]))
    return rise + plan.weights + plan.optimizer + plan.frozen, plan.total


def planned(stage: str, shape: Any) -> Any:
    """Return the estimate of a stage."""
    from posttrain.plan.footprint import Rollouts, Setting, Training

    row = 3 * LENGTH // 2 if stage in ("reward", "dpo") else LENGTH  # half of it is a prompt, of two responses
    rollouts = Rollouts(LENGTH // 2, ROWS, True, shape, shape) if stage == "ppo" else None
    training = Training(
        shape, "score" if stage == "reward" else "lm", row, 1, rollouts=rollouts, share=ROWS, on_cpu=True
    )
    return training.memory(Setting(ROWS, False, "full", "float32", None))


def run(spec: Path, stage: str) -> float:
    """Run a stage in a process of its own, and return by how many bytes it rose in its second step."""
    told = spec.with_suffix(".memory")
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = child(stage, spec, told)
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise SystemExit(f"{stage} did not end well; its log is beside {spec}")
    return float(json.loads(told.read_text(encoding="utf-8"))) if told.exists() else 0.0


def child(stage: str, spec: Path, told: Path) -> int:
    """Run a stage, write by how many bytes the process rose in its second step, and return the exit code."""
    from posttrain.train.engine.trainer import StageTrainer

    log = os.open(spec.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    train, step = StageTrainer.train, StageTrainer.training_step
    before: list[int] = []

    def watched_step(self: Any, *args: Any, **theirs: Any) -> Any:
        if self.state.global_step == 1:  # the first one also loads libraries
            before.append(_status("VmRSS"))
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins anew
        return step(self, *args, **theirs)

    def watched(self: Any, *args: Any, **theirs: Any) -> Any:
        done = train(self, *args, **theirs)
        told.write_text(json.dumps((_status("VmHWM") - before[0]) * 1024), encoding="utf-8")
        return done

    StageTrainer.train, StageTrainer.training_step = watched, watched_step
    sys.argv = [f"posttrain.train.{stage}", "--spec", str(spec)]
    try:
        runpy.run_module(f"posttrain.train.{stage}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _status(name: str) -> int:
    """Return a line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # glibc reads them once
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    print("| shape | stage | measured MiB | planned MiB | planned / measured |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for shape in options.shapes:
            for stage in options.stages:
                seen, plan = measured(stage, Path(work), shape)
                print(f"| {shape} | {stage} | {seen / MIB:.0f} | {plan / MIB:.0f} | {plan / seen:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
