"""How a run was launched, each time: `launched.jsonl` in its folder, a line a launch.

{"time": …, "overrides": ["recipe=demo", …], "directory": …, "user": …, "host": …, "commit": …}
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import socket
import subprocess
import time
from pathlib import Path

from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a run."""

    time: str
    overrides: list[str]
    """What stood behind `posttrain run`; of a sweep, of all its points."""
    config_dir: str | None
    keep_going: bool
    directory: str
    """Folder that it was said in, which relative paths start from."""
    user: str
    host: str
    commit: str
    """Of the folder, where git knows one; ``+`` behind it where files differed from it."""


def this_launch(overrides: list[str], config_dir: Path | None, keep_going: bool) -> Launch:
    """Return what is to be remembered of the launch that this process is."""
    return Launch(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        overrides=overrides,
        config_dir=None if config_dir is None else str(config_dir),
        keep_going=keep_going,
        directory=str(Path.cwd()),
        user=_user(),
        host=socket.gethostname(),
        commit=_commit(),
    )


def note_launch(run: RunDirectory, launch: Launch) -> None:
    """Add a launch to those of a run."""
    with (run.path / "launched.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(launch), ensure_ascii=False) + "\n")


def read_launches(run: RunDirectory) -> list[Launch]:
    """Return the launches of a run, oldest first; raise UsageError when they cannot be read."""
    path = run.path / "launched.jsonl"
    try:
        return [Launch(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: not readable ({error}); delete it, and say the whole command again") from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for the number, as in a container
        return str(os.getuid())


def _commit() -> str:
    commit = _git("rev-parse", "HEAD")
    return f"{commit}{'+' if commit and _git('status', '--porcelain', '--untracked-files=no') else ''}"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
