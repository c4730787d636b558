"""Runs stages in processes of their own, from a work order, as the pipeline runs them."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lenders  # noqa: F401
from build_artifacts import ENVIRONMENT
from forked_ranks import distributed, work_order

from posttrain.stage.tracking import read_metrics

CHILDREN = os.environ | {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"}


def stage(
    name: str, output: Path, inputs: dict[str, Path], engine: str = "single", **knobs: Any
) -> list[dict[str, Any]]:
    """Run a stage to its end under an engine of ``distributed=``, and return the lines of its log."""
    process, log = start(name, output, inputs, engine, **knobs)
    code = process.wait()
    assert code == 0, f"{name} under {engine} ended with {code}: {last_words(log)}"
    return read_metrics(output / "logs" / "metrics.jsonl") if (output / "logs").exists() else []


def start(
    name: str, output: Path, inputs: dict[str, Path], engine: str, **knobs: Any
) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a stage with a work order of its own, as the pipeline does; returns its process and its log."""
    how = dataclasses.replace(distributed(engine, 1), timeout_seconds=600.0)
    spec = work_order(name, output, inputs, how, **knobs)
    log = output.with_name(f"{output.name}.log")
    command = [sys.executable, "-m", f"posttrain.train.{name}", "--spec", str(spec)]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=CHILDREN, stdin=subprocess.DEVNULL, stdout=file, stderr=file), log


def kill_at(process: subprocess.Popen[bytes], metrics: Path, checkpoint: Path, step: int) -> list[dict[str, Any]]:
    """Kill a stage with SIGKILL once it has a checkpoint and has logged a step; returns the lines until then."""
    while process.poll() is None:
        lines = read_metrics(metrics) if metrics.exists() else []
        if checkpoint.is_dir() and lines and lines[-1]["step"] >= step:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return lines
        time.sleep(0.005)
    raise AssertionError(f"the stage ended with {process.returncode} before step {step} was seen")


def last_words(log: Path) -> str:
    """Return the line of a log that says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if "Error" in line or line.startswith("error:")]
    return (errors or lines or ["nothing was printed"])[-1][:400]


def peak(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the most GPU memory of a log, where there was a GPU."""
    found = [line["peak_memory_gb"] for line in lines if "peak_memory_gb" in line]
    return {"peak GB": max(found)} if found else {}


def finite(lines: Sequence[dict[str, Any]]) -> None:
    """Raise AssertionError where a number of a log is not finite."""
    for line in lines:
        for name, value in line.items():
            assert not isinstance(value, float) or math.isfinite(value), f"{name}={value} at step {line['step']}"
