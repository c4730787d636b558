"""A run whose rank was killed goes on: exactly on as many ranks, within rounding on another number of them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_ranks import distributed, logs_of, start_ranks, train, wait_for, work_order
from rank_bench import KNOBS, Bench, losses, weights

from posttrain.stage.files import sha256_file

KINDS = ["ddp", "zero2", "zero3", "fsdp2"]
LONG = {**KNOBS, "max_steps": 8, "save_steps": 2, "keep_checkpoints": 3}


def kill_one_rank(bench: Bench, stage: str, kind: str, name: str) -> Path:
    """Start a stage on two ranks, kill the second with SIGKILL after checkpoint 4, and return the output it wanted."""
    output = bench.artifact(name)
    spec = work_order(stage, output, bench.inputs(stage), distributed(kind, 2), **LONG)
    children = start_ranks(stage, spec, 2)
    checkpoint = work_of(output) / "checkpoints" / "checkpoint-4"
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert time.monotonic() < deadline, logs_of(spec)
        time.sleep(0.001)
    os.kill(children[1], signal.SIGKILL)
    codes = wait_for(children)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, codes
    assert not output.exists()
    return output


def work_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.work")


def go_on(bench: Bench, killed: Path, stage: str, kind: str, processes: int) -> Path:
    """Let so many ranks go on from what a killed run left, which stays as it is."""
    output = killed.with_name(f"{killed.name}_{processes}")
    shutil.copytree(work_of(killed), work_of(output))
    return train(stage, output, bench.inputs(stage), distributed(kind, processes), **LONG)


@pytest.mark.parametrize("kind", KINDS)
def test_with_as_many_ranks_it_ends_bit_identical(dropout_bench: Bench, kind: str) -> None:
    bench = dropout_bench
    undisturbed = bench.train("sft", kind, tag="long", **LONG)
    resumed = go_on(bench, kill_one_rank(bench, "sft", kind, f"killed_{kind}"), "sft", kind, 2)
    assert losses(resumed) == losses(undisturbed)
    assert sha256_file(resumed / "model.safetensors") == sha256_file(undisturbed / "model.safetensors")


IN_CI = ("ddp", "zero3")
ELSEWHERE = [pytest.param(kind, marks=[] if kind in IN_CI else pytest.mark.slow) for kind in (*KINDS, "zero1")]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_on_one_rank_and_on_four_it_ends_within_rounding(bench: Bench, kind: str) -> None:
    undisturbed = bench.train("sft", kind, tag="long", **LONG)
    killed = kill_one_rank(bench, "sft", kind, f"elastic_{kind}")
    for processes in (1, 4):
        resumed = go_on(bench, killed, "sft", "single" if (kind, processes) == ("ddp", 1) else kind, processes)
        assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-5)
        expected = weights(undisturbed)
        for name, tensor in weights(resumed).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
        log = logs_of(resumed.with_name(f"{resumed.name}.spec.json"))
        for rank in range(processes):
            assert f"random state of rank {rank} drawn from seed 3, rank and step" in log


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_other_stages_go_on_elsewhere_too(bench: Bench, stage: str, kind: str) -> None:
    undisturbed = bench.train(stage, kind, tag="long", **LONG)
    killed = kill_one_rank(bench, stage, kind, f"elastic_{stage}_{kind}")
    for processes in (1, 4):
        resumed = go_on(bench, killed, stage, "single" if (kind, processes) == ("ddp", 1) else kind, processes)
        assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-5)


def test_a_checkpoint_of_another_engine_is_refused(bench: Bench) -> None:
    killed = kill_one_rank(bench, "sft", "ddp", "refused_ddp")
    spec = work_order("sft", killed, bench.inputs("sft"), distributed("zero2", 2), **LONG)
    assert wait_for(start_ranks("sft", spec, 2)) == [2, 2]
    message = killed.with_name(f"{killed.name}.outcome.json").read_text()
    assert "written by ddp on 2 processes, and zero2 reads another format; go on with distributed=ddp" in message
