"""Runs the parts of a check, each in a process of its own with a time limit, and keeps each result as it ends.

A result is a line of ``<folder>/<script>.jsonl``; at the end the same stands in ``<script>.json`` and, as a table, in
``<script>.md``. A part that has ended on this code and device is not run again; one that was cut off by its limit or by
the budget of the whole script is, so that the same command goes on where the last one was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 10.0
"""With less than this of the budget left no part is started."""
PATIENCE = 4
"""How many times a part's limit a try on a CPU may take."""
ENDED = ("passed", "failed", "skipped")

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a part is to run on."""

    device: str
    tiny: bool
    work: Path
    """Folder of models, tokens and outputs, shared by the parts of a script."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One check: a function that returns figures, and raises AssertionError where something is not right."""

    name: str
    run: Callable[[Setting], Figures]
    seconds: float = 60.0
    """Its time limit."""


class Skipped(Exception):  # noqa: N818
    """A part that cannot run here, and why."""


def main(
    about: str, parts: Sequence[Part], jobs: int = 1, closing: Callable[[dict[str, Figures]], list[str]] | None = None
) -> None:
    """Run the parts that have not ended yet, in their order; exit with 1 where one failed or is still to come.

    ``jobs`` parts run at once on a GPU. ``closing`` makes lines below the table from the figures of parts that passed.
    """
    options = _options(about, parts)
    script = Path(sys.argv[0]).stem
    setting = Setting(options.device, options.tiny, options.folder.resolve() / f"{script}-work")
    if options.one is not None:
        _run_one(next(part for part in parts if part.name == options.one), setting, options.result)
        return
    chosen = [part for part in parts if not options.only or part.name in options.only]
    record = Record(options.folder / script, {"code": code_identity(), "device": options.device, "tiny": options.tiny})
    if options.again:
        record.forget(chosen)
    deadline = time.monotonic() + options.seconds
    with ThreadPoolExecutor(options.jobs or (jobs if options.device == "cuda" else 1)) as pool:
        list(pool.map(lambda part: _supervise(part, setting, record, deadline), chosen))
    sys.exit(record.report(chosen, closing))


def _options(about: str, parts: Sequence[Part]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU runs in seconds: a try of the script")
    parser.add_argument("--only", nargs="*", choices=[part.name for part in parts], metavar="PART", help="these parts")
    parser.add_argument("--again", action="store_true", help="also run parts that have ended on this code")
    parser.add_argument("--seconds", type=float, default=220, help="after which all parts are ended")
    parser.add_argument("--jobs", type=int, help="parts at once")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "check_gpu", help="of results and models")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def code_identity() -> str:
    """Return the commit that runs; with edits, or without git, a digest of all Python and YAML files."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        edits = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
        if not edits.stdout.strip():
            return head.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    folders = [path.parent for path in ROOT.glob("*/__init__.py")] + [ROOT / "scripts"]
    files = sorted(path for folder in folders for suffix in ("py", "yaml") for path in folder.rglob(f"*.{suffix}"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _run_one(part: Part, setting: Setting, result: Path) -> None:
    """Run a part as this process, and leave its outcome in a file."""
    setting.work.mkdir(parents=True, exist_ok=True)
    try:
        outcome = {"status": "passed", "figures": part.run(setting)}
    except Skipped as reason:
        outcome = {"status": "skipped", "why": str(reason)}
    except AssertionError as wrong:
        outcome = {"status": "failed", "why": str(wrong)}
    result.write_text(json.dumps(outcome), encoding="utf-8")


def _supervise(part: Part, setting: Setting, record: Record, deadline: float) -> None:
    """Run a part in a child and record what came of it; its whole process group ends with its time."""
    left = deadline - time.monotonic()
    if record.has(part.name) or left < LEAST_SECONDS:
        return
    folder = record.path.parent / f"{record.path.name}-logs"
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    result.unlink(missing_ok=True)
    command = [sys.executable, sys.argv[0], "--device", setting.device, *(["--tiny"] if setting.tiny else [])]
    command += ["--folder", str(record.path.parent), "--one", part.name, "--result", str(result)]
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment = os.environ | (on_cpu if setting.device == "cpu" else {})
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            child.wait(min(part.seconds * (PATIENCE if setting.device == "cpu" else 1), left))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            result.write_text(json.dumps({"status": "cut off", "why": f"after {time.monotonic() - started:.0f} s"}))
    if result.exists():
        outcome = json.loads(result.read_text(encoding="utf-8"))
    else:
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        outcome = {"status": "failed", "why": lines[-1] if lines else f"exit code {child.returncode}"}
    record.add(part.name, outcome | {"seconds": round(time.monotonic() - started, 1), "log": str(log)})


class Record:
    """What came of the parts, on this code and device."""

    def __init__(self, path: Path, identity: Figures) -> None:
        self.path = path
        self.identity = identity
        self._lines = path.with_name(f"{path.name}.jsonl")
        self._lock = threading.Lock()
        self.outcomes: dict[str, Figures] = {}
        if self._lines.exists():
            for line in self._lines.read_text(encoding="utf-8").splitlines():
                outcome = json.loads(line)
                if all(outcome.get(name) == value for name, value in identity.items()):
                    self.outcomes[outcome["part"]] = outcome

    def has(self, part: str) -> bool:
        """Return whether a part has ended."""
        return self.outcomes.get(part, {}).get("status") in ENDED

    def forget(self, parts: Sequence[Part]) -> None:
        """Let parts run again."""
        for part in parts:
            self.outcomes.pop(part.name, None)

    def add(self, part: str, outcome: Figures) -> None:
        """Print an outcome, and keep it even if the machine is taken away at once."""
        line = {**self.identity, "part": part, **outcome}
        with self._lock:
            self.outcomes[part] = line
            self._lines.parent.mkdir(parents=True, exist_ok=True)
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(f"{outcome['status']:>8}  {part}  {outcome['seconds']:.0f} s  {_what(outcome)}", flush=True)

    def report(self, parts: Sequence[Part], closing: Callable[[dict[str, Figures]], list[str]] | None) -> int:
        """Write the results as JSON and as a table, print the table, and return the exit code."""
        rows = [self.outcomes.get(part.name, {"part": part.name, "status": "to come"}) for part in parts]
        self._lines.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        table = ["| part | result | seconds | figures |", "|---|---|---|---|"]
        table += [f"| {row['part']} | {row['status']} | {row.get('seconds', '')} | {_what(row)} |" for row in rows]
        found = {row["part"]: row["figures"] for row in rows if row["status"] == "passed"}
        below = ["", *closing(found)] if closing is not None else []
        text = "\n".join([_machine(self.identity), "", *table, *below, ""])
        self._lines.with_suffix(".md").write_text(text, encoding="utf-8")
        print(f"\n{text}\n{self._lines.with_suffix('.md')}")
        if left := [row["part"] for row in rows if row["status"] not in ENDED]:
            print(f"still to come: {', '.join(left)}; run the same command again")
        return int(any(row["status"] not in ("passed", "skipped") for row in rows))


def _what(outcome: Figures) -> str:
    figures = ", ".join(f"{name} {_short(value)}" for name, value in outcome.get("figures", {}).items())
    return (outcome.get("why") or figures).replace("|", "/").replace("\n", " ")


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def _machine(identity: Figures) -> str:
    import torch

    on_gpu = identity["device"] == "cuda" and torch.cuda.is_available()
    machine = torch.cuda.get_device_name(0) if on_gpu else "CPU"
    sizes = ", tiny shapes: a try of the script, no figures" if identity["tiny"] else ""
    return f"{machine}, torch {torch.__version__}, code {identity['code']}{sizes}"
