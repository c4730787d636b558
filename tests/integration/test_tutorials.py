"""The command blocks of the tutorials, run as they stand, on a tiny model in place of a real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_model

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_runs(page: Path, tmp_path: Path) -> None:
    model = build_model(tmp_path / "model", shape={"max_position_embeddings": 1024})
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    (tmp_path / "work" / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "make_function_calls.py", tmp_path / "work" / "scripts")
    environment = {**os.environ, **ENVIRONMENT, "MODEL": str(model)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -eux\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path / "work"
    )
    assert done.returncode == 0, done.stderr[-4000:]
