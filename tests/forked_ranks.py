"""Run a training stage on several ranks in forked children, as `srun` starts them: variables, no launcher between.

The heavy imports happen once, in the parent; each rank is a real process that joins the others over gloo, and can be
killed.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.pipeline.config.compose import compose_config
from posttrain.stage.artifact import Parent, read_manifest
from posttrain.stage.spec import Distributed, StageSpec, Tracking

STAGES = {
    "sft": ("SftConfig", "model"),
    "reward": ("RewardConfig", "reward_model"),
    "dpo": ("DpoConfig", "model"),
    "kto": ("KtoConfig", "model"),
    "reference": ("ReferenceConfig", "reference_logps"),
    "rloo": ("RlooConfig", "model"),
    "grpo": ("GrpoConfig", "model"),
    "ppo": ("PpoConfig", "model"),
    "sample.rank": ("RankConfig", "sources"),
    "sample.generate": ("GenerateConfig", "sources"),
    "evaluate.policy": ("PolicyEvaluationConfig", "scores"),
    "evaluate.best_of_n": ("BestOfNConfig", "selection"),
}
"""Those of `train` by their names alone."""
TIMEOUT_SECONDS = 150.0


def distributed(name: str, num_processes: int) -> Distributed:
    """Return the shipped configuration of that name for so many processes."""
    asked = compose_config(["recipe=demo", f"distributed={name}"]).distributed
    return Distributed(asked.kind, num_processes, asked.deepspeed, asked.fsdp, timeout_seconds=60.0)


def work_order(stage: str, output: Path, inputs: dict[str, Path], how: Distributed, **knobs: Any) -> Path:
    """Write a stage's spec beside its output and return its path."""
    manifests = {name: read_manifest(path) for name, path in inputs.items()}
    spec = StageSpec(
        stage=stage,
        run=_run_of(stage),
        pipeline="test",
        key=output.name.ljust(64, "0"),
        code_digest="",
        config=knobs,
        inputs={name: str(path) for name, path in inputs.items()},
        parents={name: Parent(m.kind, m.digest, inputs[name].name) for name, m in manifests.items()},
        output=str(output),
        work=str(output.with_name(f"{output.name}.work")),
        outcome=str(output.with_name(f"{output.name}.outcome.json")),
        seed=3,
        distributed=how,
        tracking=Tracking(wandb="disabled"),
    )
    path = output.with_name(f"{output.name}.spec.json")
    spec.write(path)
    Path(spec.outcome).unlink(missing_ok=True)  # as the launcher does: the first word of an attempt stays
    return path


def _run_of(stage: str) -> str:
    return stage if "." in stage else f"train.{stage}"


def start_ranks(stage: str, spec: Path, num_processes: int, prepare: Callable[[], None] | None = None) -> list[int]:
    """Fork the ranks of a stage and return their process ids; they write to ``<spec>.<rank>.log``."""
    module = importlib.import_module(f"posttrain.{_run_of(stage)}")
    main = importlib.import_module("posttrain.stage.entry").stage_main
    config_class, kind = STAGES[stage]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(num_processes):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        torch.set_num_threads(1)  # makes torch's pool anew; the threads that load weights would race for it
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        os.environ.update({name: str(value) for name, value in ranks.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        log = os.open(spec.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)  # past pytest's capture
        warnings.resetwarnings()  # pytest turns them into errors, and keeps the log; a rank is an ordinary process
        logging.root.handlers.clear()
        sys.argv = [module.__name__, "--spec", str(spec)]
        code = 1
        try:
            if prepare is not None:
                prepare()
            main(module.run, getattr(module, config_class), kind)
        except SystemExit as finished:
            code = int(finished.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return children


def wait_for(children: list[int], timeout: float = TIMEOUT_SECONDS) -> list[int]:
    """Return the exit codes of ranks (negative: killed by that signal); when one fails the others are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while len(codes) < len(children):
        for pid in children:
            if pid not in codes and (done := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(done[1])
        if any(codes.values()) or time.monotonic() > deadline:
            time.sleep(1.0 if any(codes.values()) else 0.0)  # the others may be about to say something better
            for pid in children:
                if pid not in codes:
                    os.kill(pid, 9)
                    codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)
    return [codes[pid] for pid in children]


def logs_of(spec: Path) -> str:
    """Return what all ranks of a spec have printed, rank by rank."""
    return "".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(spec.parent.glob(f"{spec.stem}.*.log")))


def train(stage: str, output: Path, inputs: dict[str, Path], how: Distributed, **knobs: Any) -> Path:
    """Run a stage to its end and return its artifact."""
    spec = work_order(stage, output, inputs, how, **knobs)
    codes = wait_for(start_ranks(stage, spec, how.num_processes))
    assert codes == [0] * how.num_processes, f"{codes}\n{logs_of(spec)[-6000:]}"
    return output
