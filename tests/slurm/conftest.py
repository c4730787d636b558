"""The cluster that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes of four CPUs each; skipped without Slurm, unless POSTTRAIN_REQUIRE_SLURM is set."""
    if missing := missing_programs():
        reason = f"not installed: {', '.join(missing)}; run tests/slurm/install.sh"
        (pytest.fail if os.environ.get("POSTTRAIN_REQUIRE_SLURM") else pytest.skip)(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
