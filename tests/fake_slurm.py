"""Slurm's commands as far as a launcher needs them: they note how they were called, and keep a queue in a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# builtins alone: a submission calls it for every stage
SBATCH = """\
echo "sbatch $*" >> "$FAKE/calls"
compgen -e > "$FAKE/environment"
read -r number < "$FAKE/number"; number=$((number + 1)); echo $number > "$FAKE/number"
for script; do :; done
[ ! -e "$FAKE/during" ] || . "$FAKE/during"
elements=
while read -r line; do [[ $line =~ ^#SBATCH\\ --array=0-([0-9]+) ]] && elements=${BASH_REMATCH[1]}; done < "$script"
for ((index = 0; index <= ${elements:-0}; index++)); do
    echo "$number${elements:+_$index}|PENDING|None||N/A|1:00" >> "$FAKE/queue"
done
echo $number
"""
SQUEUE = """\
echo "squeue $*" >> "$FAKE/calls"
[ ! -e "$FAKE/silent" ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
[ -s "$FAKE/queue" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
cat "$FAKE/queue"
"""
SCANCEL = """\
echo "scancel $*" >> "$FAKE/calls"
for job; do sed -i "/^$job[_|]/d" "$FAKE/queue"; done
"""


class FakeSlurm:
    """A folder with `sbatch`, `squeue` and `scancel` in it, first on the search path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "number").write_text("100")
        (folder / "queue").write_text("")
        for name, body in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL}.items():
            program = folder / "bin" / name
            program.write_text(f"#!/bin/bash\n{body}")
            program.chmod(0o755)
        monkeypatch.setenv("FAKE", str(folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def calls(self, command: str) -> list[str]:
        """How a command was called, by its arguments."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [line.removeprefix(f"{command} ") for line in lines if line.startswith(f"{command} ")]

    def queue(self) -> list[str]:
        """The jobs and array elements in the queue."""
        return [line.partition("|")[0] for line in (self.folder / "queue").read_text().splitlines()]

    def end(self, *jobs: str) -> None:
        """Let jobs leave the queue; without any, all of them."""
        lines = (self.folder / "queue").read_text().splitlines(keepends=True)
        left = [line for line in lines if jobs and line.partition("|")[0] not in jobs]
        (self.folder / "queue").write_text("".join(left))

    def environment(self) -> set[str]:
        """The names of the variables that the last `sbatch` found in its environment."""
        return set((self.folder / "environment").read_text().split())
