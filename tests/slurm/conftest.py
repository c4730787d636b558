"""The cluster that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import SlurmCluster, missing_programs
from pipelines import Pipeline


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes of four CPUs each; skipped without Slurm, unless POSTTRAIN_REQUIRE_SLURM is set."""
    if missing := missing_programs():
        reason = f"not installed: {', '.join(missing)}; run tests/slurm/install.sh"
        (pytest.fail if os.environ.get("POSTTRAIN_REQUIRE_SLURM") else pytest.skip)(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def smoke(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The demo graph at smoke size, run to its end over both nodes; its artifacts serve other tests."""
    overrides = ("recipe=smoke", "distributed=ddp", "stages.sft.distributed=zero3")
    pipeline = Pipeline(slurm, tmp_path_factory.mktemp("smoke"), "calm", overrides)
    pipeline.run("launcher.slurm.wait=true")
    return pipeline
