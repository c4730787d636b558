"""Strike runs of a pipeline at random, several times each, and see whether the same command ends in the same bytes.

    python scripts/chaos.py DIRECTORY [--runs 25] [--strikes 8] [--seed 0] [KEY=VALUE …]

A calm run of ``recipe=smoke`` comes first; how long it takes says how soon strikes follow each other. Then each run
is started in a terminal of its own, struck, and started again whenever it has ended, until it is done. What a run is
struck with, and when, depends on the seed and its number alone. A finished run (DIRECTORY/runs.jsonl) is not repeated,
so an interrupted chaos goes on. As root, each store is a small file system of its own, which one kind of strike fills.

Exit code 1: a run did not end, ended in other bytes, or something outside of its store was touched.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import EXIT_USAGE
from posttrain.stage.heartbeat import read_beats

COMMAND = [sys.executable, "-m", "posttrain.pipeline.cli", "run", "recipe=smoke", "tracking=none", "run_name=r"]
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline"}
MOST_COMMANDS = 40
"""A run that has not ended by then is given up."""
STORE_MEGABYTES = 100
MOST_SECONDS = 3600.0
"""A command that has not ended by then hangs."""
FULL_SECONDS = 8.0
AGAIN_SECONDS = 1.5
ENDS = (0, 1, 75)
"""Exit codes of a launcher that nobody killed: done, a stage failed, the same command goes on."""
NO_ROOM = "of weights and checkpoints are to come, but"
YEAR_SECONDS = 365 * 24 * 3600.0


class Second:
    """The same command once more, beside another: it waits for the lease, and goes on with the run if it gets it."""

    def __init__(self, base: Path, store: Path, overrides: list[str]) -> None:
        self._log = store.with_name(f"{store.name}.second_{time.monotonic_ns()}.log")
        command = [*COMMAND, f"root={store}", *overrides]
        environment = {**os.environ, **QUIET}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=base / "cwd", env=environment, stdout=log, stderr=log)

    def problem(self) -> str:
        """Wait for its end, and return what should not have been; strikes that hit its stages may let it fail."""
        try:
            code = self._process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return f"a second launcher still ran after {MOST_SECONDS:.0f} s"
        said = self._log.read_text(encoding="utf-8", errors="replace")
        full = code == EXIT_USAGE and NO_ROOM in said  # it began while another strike had filled the disk
        return (
            "" if (code in ENDS or full) and "Traceback" not in said else f"a second launcher ended with {code}: {said}"
        )


class Launch:
    """One command in a terminal of its own."""

    def __init__(self, base: Path, store: Path, overrides: list[str]) -> None:
        self.store, self.overrides = store, overrides
        self.code: int | None = None
        self.problems: list[str] = []
        self.seconds: list[Second] = []
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(base / "cwd")
            home = {"HOME": str(base / "home"), "TMPDIR": str(base / "tmp")}
            os.execve(COMMAND[0], [*COMMAND, f"root={store}", *overrides], {**os.environ, **QUIET, **home})
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(store.with_suffix(".log"),), daemon=True)
        self._reader.start()

    def _read(self, log: Path) -> None:
        """Keep what the terminal shows, until it is to be closed: a read that waits would keep it open."""
        with log.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while not self._closing.is_set():
                if select.select([self._terminal], [], [], 0.1)[0]:
                    file.write(os.read(self._terminal, 65536))
        self._closing.wait()
        os.close(self._terminal)

    def ended(self, seconds: float) -> bool:
        """Wait so long at most; return whether it has ended."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.hang_up()
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(0.05)
        return True

    def end(self) -> int:
        """Wait for the end, though not for ever, and return the exit code."""
        if not self.ended(MOST_SECONDS):
            self.problems.append(f"still ran after {MOST_SECONDS:.0f} s")
            self.signal(signal.SIGKILL)
            self.ended(MOST_SECONDS)
        assert self.code is not None
        return self.code

    def signal(self, number: int) -> None:
        """Signal the launcher."""
        os.kill(self.pid, number)

    def type(self, text: bytes) -> None:
        """Type into the terminal."""
        os.write(self._terminal, text)

    def hang_up(self) -> None:
        """Close the terminal."""
        self._closing.set()
        self._reader.join()

    def stages(self) -> list[int]:
        """Return what the launcher started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def ranks(self) -> list[int]:
        """Return the stage processes that give signs of life."""
        said = [beat.pid for folder in self.store.glob("runs/*/logs/*/*.ranks") for beat in read_beats(folder)]
        return [pid for pid in said if str(self.store).encode() in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_launcher(launch: Launch, draw: random.Random) -> None:
    launch.signal(signal.SIGKILL)


def kill_stage(launch: Launch, draw: random.Random) -> None:
    if stages := launch.stages():
        os.kill(draw.choice(stages), signal.SIGKILL)


def kill_rank(launch: Launch, draw: random.Random) -> None:
    if ranks := launch.ranks():
        os.kill(draw.choice(ranks), signal.SIGKILL)


def interrupt(launch: Launch, draw: random.Random) -> None:
    launch.type(b"\x03")


def insist(launch: Launch, draw: random.Random) -> None:
    launch.type(b"\x03")
    if not launch.ended(AGAIN_SECONDS):
        launch.type(b"\x03")


def hang_up(launch: Launch, draw: random.Random) -> None:
    launch.hang_up()


def terminate(launch: Launch, draw: random.Random) -> None:
    launch.signal(signal.SIGTERM)


def fill_the_disk(launch: Launch, draw: random.Random) -> None:
    ballast = launch.store / ".ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    launch.ended(draw.uniform(0.5, FULL_SECONDS))
    ballast.unlink()


def start_a_second(launch: Launch, draw: random.Random) -> None:
    launch.seconds.append(Second(launch.store.parent, launch.store, launch.overrides))


def touch_the_clock(launch: Launch, draw: random.Random) -> None:
    """As a clock that was set back or forth, or another machine's, leaves the times of files."""
    for path in launch.store.rglob("*"):
        when = time.time() + draw.uniform(-YEAR_SECONDS, YEAR_SECONDS)
        with contextlib.suppress(OSError):
            os.utime(path, (when, when), follow_symlinks=False)


def delete_an_order(launch: Launch, draw: random.Random) -> None:
    if orders := sorted(launch.store.glob("runs/*/stages/*/spec.json")):
        draw.choice(orders).unlink(missing_ok=True)


STRIKES: dict[str, Callable[[Launch, random.Random], None]] = {
    "launcher: SIGKILL": kill_launcher,
    "stage: SIGKILL": kill_stage,
    "rank: SIGKILL": kill_rank,
    "Ctrl-C": interrupt,
    "Ctrl-C, and again": insist,
    "terminal closed": hang_up,
    "SIGTERM": terminate,
    "disk full": fill_the_disk,
    "second launcher": start_a_second,
    "touched clock": touch_the_clock,
    "work order deleted": delete_an_order,
}


@dataclasses.dataclass
class Strike:
    """One strike, and what became of the command that was struck."""

    kind: str
    code: int
    """Exit code of the command; negative: killed by that signal."""


@dataclasses.dataclass
class Run:
    """A run that was struck until it ended."""

    number: int
    strikes: list[Strike]
    commands: int
    ended: bool
    differing: list[str]
    """Stages whose artifact is not the calm run's."""
    problems: list[str]
    """Whatever else should not have been: something outside was touched, a second launcher broke, a command hung."""


def storm(base: Path, number: int, seed: int, strikes: int, seconds: float, overrides: list[str]) -> Run:
    """Strike one run so often, and let it end."""
    draw = random.Random(f"{seed} {number}")
    kinds = [kind for kind in STRIKES if kind != "disk full" or os.getuid() == 0]
    planned = [(draw.choice(kinds), draw.uniform(1, seconds)) for _ in range(strikes)]
    store = base / f"run_{number}"
    before = contents(base)
    run = Run(number, [], 0, False, [], [])
    with mounted(store):
        beside: list[Second] = []
        while not run.ended and run.commands < MOST_COMMANDS:
            launch = Launch(base, store, overrides)
            run.commands += 1
            struck: list[str] = []
            while planned and not launch.ended(planned[0][1]):
                kind, _ = planned.pop(0)
                STRIKES[kind](launch, draw)
                struck.append(kind)
            code = launch.end()
            run.strikes += [Strike(kind, code) for kind in struck]
            run.problems += launch.problems
            beside += launch.seconds
            run.ended = code == 0
        run.problems += filter(None, [second.problem() for second in beside])
        found, wanted = digests(store), digests(base / "calm")
    run.differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    run.problems += [f"touched: {path}" for path, *_ in sorted(contents(base) ^ before)]
    return run


@contextlib.contextmanager
def mounted(store: Path) -> Iterator[None]:
    """Give a store a small file system of its own, where we may."""
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    if os.getuid() != 0:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STORE_MEGABYTES}m", "chaos", store], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", store], check=True)


def digests(store: Path) -> dict[str, str]:
    """Return the digest of every artifact, by the stage that made it; a report says when and how fast, and has none."""
    found = (read_manifest(path) for path in (store / "artifacts").glob("[!.]*"))
    return {manifest.stage: manifest.digest if manifest.kind != "report" else "made" for manifest in found}


def contents(base: Path) -> set[tuple[str, int, int]]:
    """Return what lies where a run has no business: its working directory and its home."""
    paths = (path for name in ("cwd", "home") for path in (base / name).rglob("*"))
    return {(str(path.relative_to(base)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def table(runs: list[Run]) -> list[str]:
    """Return what each kind of strike did, and a line of totals."""
    codes: dict[str, Counter[int]] = {kind: Counter() for kind in STRIKES}
    for run in runs:
        for strike in run.strikes:
            codes[strike.kind][strike.code] += 1
    lines = [f"{'strike':<20} {'times':>5}  the command then ended with"]
    for kind, counted in codes.items():
        ends = ", ".join(f"{code} ({times})" for code, times in sorted(counted.items()))
        lines.append(f"{kind:<20} {counted.total():>5}  {ends}")
    same = sum(run.ended and not run.differing for run in runs)
    strikes, commands = sum(len(run.strikes) for run in runs), sum(run.commands for run in runs)
    lines.append(
        f"{strikes} strikes, {len(runs)} runs, {commands} commands: {same} ended in the calm run's bytes, "
        f"{sum(bool(run.problems) for run in runs)} with problems"
    )
    return lines


def calm_seconds(base: Path, overrides: list[str]) -> float:
    """Run the pipeline undisturbed, unless that was done; return how long it took."""
    took = base / "calm_seconds"
    started = time.monotonic()
    code = Launch(base, base / "calm", overrides).end()
    if code != 0:
        sys.exit(f"error: the calm run ended with {code}; see {base / 'calm.log'}")
    if not took.exists():
        took.write_text(str(time.monotonic() - started))
    return float(took.read_text())


def main() -> int:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--strikes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_intermixed_args()
    base = options.directory.resolve()
    for name in ("cwd", "home", "tmp"):
        (base / name).mkdir(parents=True, exist_ok=True)
    pause = calm_seconds(base, options.overrides) / options.strikes  # on average, the last strikes at half time
    results = base / "runs.jsonl"
    runs = [_read_run(line) for line in results.read_text().splitlines()] if results.exists() else []
    for number in sorted(set(range(options.runs)) - {run.number for run in runs}):
        run = storm(base, number, options.seed, options.strikes, pause, options.overrides)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(run)) + "\n")
        runs.append(run)
        print(f"run {number}: {len(run.strikes)} strikes, {run.commands} commands, ended {run.ended}", flush=True)
        for what in [*(f"other bytes: {stage}" for stage in run.differing), *run.problems]:
            print(f"  {what}", flush=True)
    print("\n".join(table(runs)))
    return int(any(not run.ended or run.differing or run.problems for run in runs))


def _read_run(line: str) -> Run:
    raw = json.loads(line)
    return Run(**{**raw, "strikes": [Strike(**strike) for strike in raw["strikes"]]})


if __name__ == "__main__":
    sys.exit(main())
