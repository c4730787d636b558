"""`posttrain export`: a model out of the store, with a model card of what it descends from and how it was evaluated."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from posttrain.pipeline.runs.launched import read_launches
from posttrain.pipeline.runs.rundir import RunDirectory, runs_in
from posttrain.pipeline.runs.store import find_artifact, manifests_beside
from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import StageSpec

ADAPTER_FILE = "adapter_config.json"
CARD_KINDS = ("model", "reward_model")


def export_model(root: Path, text: str, directory: Path, merge: bool) -> int:
    """Write the model that ``text`` names to a new folder, with its card as README.md; return the exit code."""
    artifact = find_artifact(root, text)
    command = [sys.executable, "-m", "posttrain.train.export", "--artifact", str(artifact), "--out", str(directory)]
    with tempfile.TemporaryDirectory(prefix="posttrain-card-") as folder:
        if read_manifest(artifact).kind in CARD_KINDS:
            card = Path(folder) / "README.md"
            card.write_text(card_of(root, artifact, directory.name, merge), encoding="utf-8")
            command += ["--card", str(card)]
        return subprocess.run([*command, *(["--merge"] if merge else [])], check=False).returncode


def card_of(root: Path, artifact: Path, name: str, merge: bool) -> str:
    """Return the model card of an artifact; without ``merge``, of an adapter as one that needs its base."""
    from posttrain.evaluate.page.model_card import model_card

    is_adapter = not merge and (artifact / ADAPTER_FILE).is_file()
    return model_card(artifact, evaluations_about(artifact), name, is_adapter, _command(root, artifact))


def evaluations_about(artifact: Path) -> list[Path]:
    """Return the scores beside a model that are about it or about the models it descends from, and gates' verdicts."""
    made = manifests_beside(artifact)
    models = _chain(artifact, made)
    scores = {path: one for path, one in made.items() if one.kind == "scores" and _parent(one, "model") in models}
    digests = {one.digest for one in scores.values()}
    return [
        *scores,
        *(path for path, one in made.items() if one.kind == "verdict" and _parent(one, "after") in digests),
    ]


def _chain(artifact: Path, made: dict[Path, Manifest]) -> set[str]:
    """Return the digests of a model and of those that it was made from."""
    by_digest = {one.digest: one for one in made.values()}
    found: set[str] = set()
    digest: str | None = read_manifest(artifact).digest
    while digest is not None and digest not in found:
        found.add(digest)
        digest = _parent(by_digest[digest], "model") if digest in by_digest else None
    return found


def _parent(manifest: Manifest, name: str) -> str | None:
    parent = manifest.parents.get(name)
    return None if parent is None else parent.digest


def _command(root: Path, artifact: Path) -> str | None:
    """Return the command line of the latest run that made or took an artifact; None where none of the store did."""
    stage = read_manifest(artifact).stage
    found = [run for run in runs_in(root) if _has(run, stage, artifact)]
    launches = [launch for run in found for launch in read_launches(run)]
    if not launches:
        return None
    last = max(launches, key=lambda launch: launch.time)
    return shlex.join(["posttrain", "run", *last.overrides])


def _has(run: RunDirectory, stage: str, artifact: Path) -> bool:
    try:
        return Path(StageSpec.read(run.spec(stage)).output).name == artifact.name
    except (FileNotFoundError, UsageError):
        return False
