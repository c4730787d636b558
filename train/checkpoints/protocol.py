"""Checkpoints that survive a crash: written under another name, hashed, flushed, renamed, and checked before use.

    checkpoints/checkpoint-120/                 a committed checkpoint: what HF Trainer writes + COMMIT.json
    checkpoints/.incomplete/checkpoint-140/     being written; removed when the stage starts again
    checkpoints/universal-checkpoint-120/       the same for another number of DeepSpeed processes; made when needed
    checkpoints/invalid-checkpoint-100/         failed its hashes; kept for a look, never used

`transformers.Trainer` writes in place and resumes from the highest number unchecked; this module replaces both ends.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from posttrain.stage.files import (
    file_problems,
    hash_files,
    publish_directory,
    remove_directory,
    write_json_atomic,
)

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a stage's checkpoints below its work directory."""
COMMIT = "COMMIT.json"
INCOMPLETE = ".incomplete"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps of all checkpoints that bear their final name, newest first."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return where the checkpoint of a step is once committed."""
    return directory / f"checkpoint-{step}"


def universal_path(checkpoint: Path) -> Path:
    """Return where the form of a checkpoint for another number of DeepSpeed processes stands."""
    return checkpoint.with_name(f"universal-{checkpoint.name}")


def staging_directory(directory: Path) -> Path:
    """Return the folder that unfinished checkpoints are written into."""
    return directory / INCOMPLETE


def commit_checkpoint(directory: Path, step: int, facts: dict[str, Any]) -> Path:
    """Hash and publish the checkpoint that stands complete in the staging directory; returns its final path."""
    staged = checkpoint_path(staging_directory(directory), step)
    remove_directory(universal_path(checkpoint_path(directory, step)))
    return commit_staged(staged, checkpoint_path(directory, step), {"step": step, **facts})


def commit_staged(staged: Path, final: Path, facts: dict[str, Any]) -> Path:
    """Hash what stands in ``staged`` and publish it as ``final``, in the place of what is there."""
    (staged / COMMIT).unlink(missing_ok=True)
    write_json_atomic(staged / COMMIT, {**facts, "files": hash_files(staged)})
    remove_directory(final)
    publish_directory(staged, final)
    return final


def read_commit(path: Path) -> dict[str, Any]:
    """Return what a valid checkpoint's record says: ``step``, ``engine``, ``world_size`` and ``files``."""
    commit: dict[str, Any] = json.loads((path / COMMIT).read_text(encoding="utf-8"))
    return commit


def checkpoint_problems(path: Path) -> list[str]:
    """Return one line per reason not to resume from a checkpoint; an empty list means that every byte is as written."""
    try:
        commit = json.loads((path / COMMIT).read_text(encoding="utf-8"))
        files = commit["files"]
    except FileNotFoundError:
        return [f"{path}: no {COMMIT}"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{path / COMMIT}: not readable ({error})"]
    return file_problems(path, files)


def newest_valid_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint whose files all match their hashes, and move the others newer than it aside."""
    remove_directory(staging_directory(directory))
    for step in checkpoint_steps(directory):
        path = checkpoint_path(directory, step)
        problems = checkpoint_problems(path)
        if not problems:
            return path
        quarantine = path.with_name(f"invalid-{path.name}")
        remove_directory(quarantine)
        path.rename(quarantine)
        log.warning("checkpoint-%d is damaged and was moved to %s:\n  %s", step, quarantine.name, "\n  ".join(problems))
    return None


def rotate_checkpoints(directory: Path, keep: int, spared: int | None = None) -> None:
    """Delete all but the ``keep`` newest checkpoints, by step: file times mean nothing after a copy.

    The one of step ``spared`` stays, too.
    """
    for step in checkpoint_steps(directory)[keep:]:
        if step == spared:
            continue
        remove_directory(universal_path(checkpoint_path(directory, step)))
        remove_directory(checkpoint_path(directory, step))
