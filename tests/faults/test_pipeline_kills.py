"""A whole pipeline, its process group killed again and again, ends with the bytes of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT

from posttrain.stage.artifact import read_manifest, verify

COMMAND = [sys.executable, "-m", "posttrain.pipeline.cli", "run", "recipe=smoke", "tracking=none"]
MOST_KILLS = 200


def start(root: Path) -> subprocess.Popen[bytes]:
    with (root.parent / f"{root.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, f"root={root}"],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def digests(root: Path) -> dict[str, str]:
    manifests = [read_manifest(path) for path in (root / "artifacts").iterdir() if not path.name.startswith(".")]
    return {manifest.stage: manifest.digest for manifest in manifests}


@pytest.mark.slow
def test_killed_at_random_times(tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert start(calm).wait() == 0
    generator = random.Random(1)
    kills = 0
    while kills < MOST_KILLS:
        process = start(stormy)
        try:
            assert process.wait(timeout=generator.uniform(1, 25)) == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    wanted, found = digests(calm), digests(stormy)
    models = [stage for stage in wanted if read_manifest(next((calm / "artifacts").glob(f"{stage}-*"))).kind in KINDS]
    assert sorted(models) == ["base", "dpo", "ppo", "reward", "sft", "untrained"]
    assert {stage: found[stage] for stage in models} == {stage: wanted[stage] for stage in models}
    assert [problem for path in (stormy / "artifacts").glob("[a-z]*") for problem in verify(path)] == []
    print(f"{kills} kills; all models bit-identical")


KINDS = ("model", "reward_model")
