"""`posttrain rm`: runs with what they alone need, or artifacts of which nothing was made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from posttrain.pipeline.commands.keeping.gc import print_needless, remove
from posttrain.pipeline.runs.needs import Needless, descendants, in_use, needless, size_of
from posttrain.pipeline.runs.rundir import LATEST, RunDirectory, runs_in
from posttrain.pipeline.runs.store import find_artifact
from posttrain.pipeline.slurm.queue import read_queue
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.lease import holder


def remove_named(root: Path, names: list[str], delete: bool) -> int:
    """List what goes with some runs or artifacts, and delete it where that is said.

    Raises UsageError for a run that is running or holds the work orders of another, and for an artifact that is being
    made or from which something was made.
    """
    root = root.resolve()
    runs = {run.name: run for run in runs_in(root)}
    doomed = [runs[name] for name in names if name in runs]
    artifacts = [find_artifact(root, name).resolve() for name in names if name not in runs]
    others = [run for run in runs.values() if run not in doomed]
    for run in doomed:
        _require_ended(run)
        _require_unlinked(run, others)
    for artifact in artifacts:
        _require_childless(root, artifact, artifacts)
    found = _only_needed_by(root, others) if doomed else []
    found += [_entry(run.path, "a run") for run in doomed]
    known = {one.path for one in found}
    found += [_entry(path, "an artifact") for path in artifacts if path not in known]
    print_needless(found, root)
    if not delete:
        print("nothing was deleted; --yes deletes it")
        return EXIT_DONE
    remove(found)
    link = root / "runs" / LATEST
    if link.is_symlink() and not link.exists():
        link.unlink()
    return EXIT_DONE


def _only_needed_by(root: Path, others: Iterable[RunDirectory]) -> list[Needless]:
    """Return what no run needs any more once only others are left, without what none needs today: that is for gc."""
    today = {one.path for one in needless(root)}
    return [one for one in needless(root, others) if one.path not in today]


def _require_ended(run: RunDirectory) -> None:
    if (who := holder(run.lease)) is not None:
        raise UsageError(f"run {run.name}: launched by {who}; end it first: posttrain cancel {run.name}")
    queue = read_queue(run)
    if queue.silent:
        raise UsageError(f"run {run.name}: was submitted, and Slurm cannot be asked for its jobs ({queue.silent})")
    if queue.live:
        raise UsageError(f"run {run.name}: has jobs in the queue; end them first: posttrain cancel {run.name}")


def _require_unlinked(run: RunDirectory, others: Iterable[RunDirectory]) -> None:
    for other in others:
        for link in (other.path / "stages").glob("*"):
            if link.is_symlink() and link.resolve().is_relative_to(run.path):
                raise UsageError(
                    f"run {run.name}: holds stage {link.name} for run {other.name} of the same sweep; remove both: "
                    f"posttrain rm {run.name} {other.name}"
                )


def _require_childless(root: Path, artifact: Path, doomed: list[Path]) -> None:
    if artifact.parent != root / "artifacts":
        raise UsageError(f"{artifact}: not in {root / 'artifacts'}; give --root, or delete it by hand")
    if in_use(root, artifact.name):
        raise UsageError(f"{artifact.name}: is being made; end its run first")
    going = {path.name for path in doomed}
    if children := [name for name in descendants(root, artifact.name) if name not in going]:
        raise UsageError(f"{artifact.name}: {', '.join(children)} were made from it; remove them too, or before it")


def _entry(path: Path, what: str) -> Needless:
    return Needless(path, what, size_of(path), path.stat().st_mtime)
