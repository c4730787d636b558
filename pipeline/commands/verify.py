"""`posttrain verify`: every file of an artifact, and every record beside it, against its hash."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import track

from posttrain.pipeline.runs.store import artifact_directories, find_artifact
from posttrain.stage.artifact import read_manifest, verify
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, UsageError
from posttrain.stage.record import read_record, records_of


def print_problems(root: Path, names: list[str]) -> int:
    """Verify the named artifacts, or all below a root; print one line per problem and return 1 if there is any."""
    directories = [find_artifact(root, name) for name in names] or artifact_directories(root)
    if not directories:
        raise UsageError(f"{root}: holds no artifact; give --root DIR")
    console = Console(stderr=True)
    shown: Iterable[Path] = track(
        directories, "verifying", console=console, transient=True, disable=not console.is_terminal
    )
    problems = [line for directory in shown for line in artifact_problems(directory)]
    for line in problems:
        print(line, file=sys.stderr)
    damaged = f"{len(problems)} problems" if problems else "every byte as recorded"
    print(f"{len(directories)} artifacts: {damaged}")
    return EXIT_FAILED if problems else EXIT_DONE


def artifact_problems(directory: Path) -> list[str]:
    """Return one line per file or record of an artifact that is not as written, and per parent that differs."""
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
