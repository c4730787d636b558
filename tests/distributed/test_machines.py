"""Two machines of one rank each, on two addresses of the loopback: a rank is lost, and going on ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT

from posttrain.stage.heartbeat import read_beats
from posttrain.stage.ranks import free_port

RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
stages:
  rows: { run: data.curate, with: { record_type: demonstration, sources: [{ name: mine, path: rows.jsonl }] } }
  base:
    run: train.base
    inputs: { data: rows }
    with:
      chat_template: chatml
      architecture: { hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 2, intermediate_size: 64 }
  tokens: { run: data.tokenize, inputs: { model: base, data: rows }, with: { max_length: 64 } }
  sft:
    run: train.sft
    inputs: { model: base, data: tokens }
    with: { global_batch_size: 8, micro_batch_size: 4, max_steps: 12, save_steps: 3, log_steps: 1 }
"""


def start(root: Path, machine: int, *overrides: str, machines: int = 2) -> subprocess.Popen[bytes]:
    """Say the same command on one of the machines."""
    cli = [
        sys.executable,
        "-m",
        "posttrain.pipeline.cli",
        "run",
        "recipe=mine",
        "--config-dir",
        "conf",
        "run_name=mine",
    ]
    spread = ["distributed=ddp", "distributed.num_processes=2", f"distributed.num_machines={machines}"]
    here = {"NODE_RANK": str(machine), "MASTER_ADDR": "127.0.0.2"}
    return subprocess.Popen(
        [*cli, *spread, "launcher.threads_per_process=1", *overrides],
        cwd=root,
        env={**os.environ, **ENVIRONMENT, **here},
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_rank_lost_on_one_of_two_machines_changes_no_bit(tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text(RECIPE)
    rows = (f'{{"prompt": "what is {i} plus one", "completion": "it is {i + 1}"}}\n' for i in range(400))
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    assert start(tmp_path, 0, "root=alone", machines=1).wait() == 0
    both = ["root=outputs", f"distributed.main_port={free_port()}"]
    machines = [start(tmp_path, number, *both) for number in (1, 0)]
    signs = tmp_path / "outputs" / "runs" / "mine" / "logs" / "sft" / "attempt_1.ranks"
    while not any(said.rank == 1 and (said.step or 0) >= 4 for said in read_beats(signs)):
        assert machines[1].poll() is None, "it ended before"
        time.sleep(0.05)
    os.kill(next(said.pid for said in read_beats(signs) if said.rank == 1), signal.SIGKILL)
    assert 0 not in [machine.wait() for machine in machines]
    machines = [start(tmp_path, number, *both) for number in (1, 0)]
    assert [machine.wait() for machine in machines] == [0, 0]
    (whole,), (resumed,) = ((tmp_path / root / "artifacts").glob("sft-*") for root in ("alone", "outputs"))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
