"""A copy of the project that a test may edit, with a store whose artifacts it need not compute."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
FOLDERS = ("conf", "data", "evaluate", "models", "pipeline", "plan", "sample", "slurm", "stage", "train")

COMMIT_ALL = """
import sys
from pathlib import Path
from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.runs.resolve import Resolver, committed
from posttrain.stage.artifact import Manifest, commit

directory, *overrides = sys.argv[1:]
point = prepare(compose_config(overrides, Path(directory) if directory else None))
launcher = local_launcher(point.config, point.stages)
resolver = Resolver(point.config, point.run, launcher.distributed)
point.run.open(point.config, point.stages)
made = {}
for stage in point.stages:
    spec = resolver.spec(stage, made)
    temporary = Path(spec.output).with_name(f".{stage.name}")
    temporary.mkdir(parents=True)
    (temporary / "file").write_text(stage.name)
    commit(temporary, Path(spec.output), Manifest(
        kind=stage.type.kind, stage=stage.name, run=stage.type.run, key=spec.key, digest="", files={},
        parents=spec.parents, config=spec.config, code_digest=spec.code_digest, seed=spec.seed, metrics={},
        headline="", tokens=0, wall_seconds=0.0, created="2026-01-01T00:00:00Z", packages={}, hardware={},
        licenses=[], facts={},
    ))
    point.run.write_spec(spec)
    made[stage.name] = committed(spec)
    resolver.save()
"""


class ClonedPackage:
    """The folders of the project under another root, from which `posttrain` runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / "posttrain"
        for folder in FOLDERS:
            shutil.copytree(CLONE / folder, self.package / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def posttrain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "posttrain.pipeline.cli", *arguments)

    def commit_all(self, *overrides: str, config_dir: str = "") -> None:
        """Commit an artifact of one small file under the key of every stage of a pipeline."""
        done = self.python("-c", COMMIT_ALL, config_dir, *overrides)
        assert done.returncode == 0, done.stderr

    def states(self, *overrides: str) -> dict[str, str]:
        """Return what a dry run says of every stage: ``cached``, ``would`` (run) or ``waits``."""
        done = self.posttrain("run", *overrides, "--dry-run")
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("# ")]
        return {line[1]: line[3] for line in lines}

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that stands once in a file of the package."""
        path = self.package / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new), encoding="utf-8")
