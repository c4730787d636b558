"""Slurm understands a rendered batch script as it was meant."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import SlurmCluster

from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.slurm.script import batch_script

COMMON = ["recipe=smoke", "launcher=slurm", "distributed=ddp", "launcher.slurm.train.cpus_per_process=1"]


@pytest.fixture
def kept(slurm: SlurmCluster) -> Iterator[None]:
    """A reservation of that name."""
    who = f"users={getpass.getuser()}"
    slurm.run("scontrol", "create", "reservationname=kept", "starttime=now", "duration=5", who, "nodes=node1")
    yield
    slurm.run("scontrol", "delete", "reservationname=kept")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["gpus_per_node=a100:2"], {"TresPerNode": "gres:gpu:a100:2", "NumTasks": "2"}),
        (["gpus_per_node=2", "gpus_by=gres"], {"TresPerNode": "gres:gpu:2"}),
        (
            ["gpus_per_node=a100:2", "gpus_by=gres", "options={gres: nvme:1}"],
            {"TresPerNode": "gres:gpu:a100:2,gres:nvme:1"},
        ),
        (["gpus_per_node=1", "options={constraint: 'a100|nvlink'}"], {"Features": "a100|nvlink"}),
        (["gpus_per_node=1", "options={constraint: 'a100&nvlink'}"], {"Features": "a100&nvlink"}),
        (["gpus_per_node=1", "partition='normal,urgent'"], {"Partition": "normal,urgent"}),
        (["gpus_per_node=1", "options={reservation: kept}"], {"Reservation": "kept"}),
        (["gpus_per_node=1", "time_limit='1-12:00:00'", "memory_per_node=2G"], {"TimeLimit": "1-12:00:00"}),
        (
            ["gpus_per_node=1", "options={job-name: 'nvcr.io#nvidia/pytorch:24.01'}"],
            {"JobName": "nvcr.io#nvidia/pytorch:24.01"},
        ),
    ],
)
def test_slurm_reads_what_was_asked_for(
    slurm: SlurmCluster, tmp_path: Path, overrides: list[str], wanted: dict[str, str]
) -> None:
    config = compose_config([*COMMON, *(f"launcher.slurm.train.{override}" for override in overrides)])
    stage = next(stage for stage in build_graph(config) if stage.name == "sft")
    script = tmp_path / "sft.sbatch"
    script.write_text(batch_script(config, stage, "r", tmp_path / "orders.json", tmp_path / "log", 1))
    job = slurm.run("sbatch", "--parsable", "--hold", script).stdout.strip()
    record = slurm.job(job)
    slurm.run("scancel", job)
    assert {name: record[name].strip() for name in wanted} == wanted


def test_a_throttled_array(slurm: SlurmCluster, tmp_path: Path) -> None:
    config = compose_config(["recipe=smoke", "launcher=slurm_cpu", "launcher.slurm.array_limit=2"])
    stage = next(stage for stage in build_graph(config) if stage.name == "sft")
    script = tmp_path / "sft.sbatch"
    script.write_text(batch_script(config, stage, "r", tmp_path / "orders.json", tmp_path / "log", 5))
    job = slurm.run("sbatch", "--parsable", "--hold", script).stdout.strip()
    (record,) = slurm.jobs(int(job))
    slurm.run("scancel", job)
    assert (record["ArrayTaskId"], record["ArrayTaskThrottle"]) == ("0-4%2", "2")
