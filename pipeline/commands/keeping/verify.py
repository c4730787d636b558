"""`posttrain verify`: every file of an artifact and every record beside it against its hash, and what is not there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from posttrain.pipeline.runs.rundir import RunDirectory, runs_in
from posttrain.pipeline.runs.store import artifact_directories, find_artifact
from posttrain.stage.artifact import MANIFEST, RESTORE, is_free, read_manifest, verify
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, UsageError
from posttrain.stage.lease import holder
from posttrain.stage.outcome import read_outcome
from posttrain.stage.record import read_record, records_of
from posttrain.stage.spec import StageSpec


def print_problems(root: Path, names: list[str], as_json: bool = False) -> int:
    """Verify the named artifacts, or all below a root; print one line per problem and return 1 if there is any.

    What must be there is known from the artifacts that were made from it and, when all are verified, from the runs
    that made it.
    """
    directories = [find_artifact(root, name) for name in names] or _all_below(root)
    missing = dict(_parents_gone(directories))
    if not names:
        missing |= {path: why for path, why in _made_by_runs(root) if is_free(path) and path not in missing}
    if not directories and not missing:
        raise UsageError(f"{root}: holds no artifact; give --root DIR")
    console = Console(stderr=True)
    shown: Iterable[Path] = track(
        directories, "verifying", console=console, transient=True, disable=not console.is_terminal
    )
    problems = [line for directory in shown for line in artifact_problems(directory)]
    problems += [f"{path}: missing, but {why}" for path, why in missing.items()]
    if as_json:
        print(json.dumps({"artifacts": [str(path) for path in directories], "problems": problems}))
        return EXIT_FAILED if problems else EXIT_DONE
    for line in problems:
        print(line, file=sys.stderr)
    damaged = f"{len(problems)} problems" if problems else "every byte as recorded"
    print(f"{len(directories)} artifacts: {damaged}")
    return EXIT_FAILED if problems else EXIT_DONE


def artifact_problems(directory: Path) -> list[str]:
    """Return one line per file or record of an artifact that is not as written, and per parent that differs."""
    if not (directory / MANIFEST).is_file():
        return [f"{directory}: {MANIFEST} is missing; {RESTORE}"]
    try:
        problems = verify(directory)
        parents = read_manifest(directory).parents
    except UsageError as error:
        return [str(error)]
    for record in records_of(directory):
        try:
            read_record(record)
        except UsageError as error:
            problems.append(str(error))
    for name, parent in parents.items():
        path = directory.parent / parent.name
        try:
            digest = read_manifest(path).digest
        except UsageError:
            continue
        if digest != parent.digest:
            problems.append(f"{path}: digest is {digest}, but {directory.name} was made from {parent.digest} as {name}")
    return problems


def _all_below(root: Path) -> list[Path]:
    """Return the artifacts below a root, and the folders that have the name of one but no manifest any more."""
    names = re.compile(r"[\w-]+-[0-9a-f]{16}")
    torn = {path for path in (root / "artifacts").glob("*") if path.is_dir() and names.fullmatch(path.name)}
    return sorted(torn | set(artifact_directories(root)))


def _parents_gone(directories: list[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the place of every parent that is not there, and what was made from it."""
    for directory in directories:
        try:
            parents = read_manifest(directory).parents
        except UsageError:
            continue
        for name, parent in parents.items():
            if is_free(path := directory.parent / parent.name):
                yield path, f"{directory.name} was made from it as {name}"


def _made_by_runs(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the place of every artifact that a run made or took as it was, as far as its work orders can be read."""
    for run in runs_in(root):
        for path in sorted((run.path / "stages").glob("*/spec.json")):
            try:
                spec = StageSpec.read(path)
            except UsageError:
                continue
            if _was_made(run, path.parent.name):
                yield Path(spec.output), f"run {run.name} made it as {spec.stage}; the same `posttrain run` does again"


def _was_made(run: RunDirectory, stage: str) -> bool:
    """Return whether a run saw the artifact of a stage: its last attempt was done, or it needed none."""
    outcome = read_outcome(run.outcome(stage))
    if outcome is not None:
        return outcome.code == EXIT_DONE
    return not run.attempts(stage) and holder(run.lease) is None
