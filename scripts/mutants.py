"""Make one line of a copy of the project wrong, see whether the tests named for it notice, and so on for every mutant.

    python scripts/mutants.py [ID or FOLDER …] [--workers 2] [--results outputs/mutants.jsonl]

tests/mutants/FOLDER.yaml holds the mutants of a folder. Each has an ``id``, a ``file``, the text ``was`` that stands
once in it, the text that it ``becomes``, and the ``tests`` that must fail for it. A finished mutant is not run again
until it, its file or its tests change, so an interrupted run goes on. Exit code 1: fewer than 95 % were noticed, or
tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = Path("tests", "mutants")
LEAST_RATE = 0.95
TIMEOUT_SECONDS = 300
KILLED, SURVIVED, TIMEOUT, BROKEN, GREEN = "killed", "survived", "timeout", "broken", "green"
OUTCOMES = {0: SURVIVED, 1: KILLED}
"""By pytest's exit code; any other means that no test ran, as when a module cannot be imported."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "PYTHONDONTWRITEBYTECODE": "1",  # a mutant may have the size and the second of the line it replaces
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One text of one file, wrong."""

    id: str
    file: str
    was: str
    becomes: str
    tests: list[str]


def read_mutants(root: Path) -> dict[str, list[Mutant]]:
    """Return the mutants by the name of their list."""
    lists = sorted((root / MUTANTS).glob("*.yaml"))
    return {path.stem: [Mutant(**entry) for entry in yaml.safe_load(path.read_text("utf-8"))] for path in lists}


def problems_of(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """Return a line for every mutant that does not fit the project any more."""
    found = [f"{name}: stands {times} times" for name, times in Counter(m.id for m in mutants).items() if times > 1]
    for mutant in mutants:
        count = (root / mutant.file).read_text("utf-8").count(mutant.was) if (root / mutant.file).is_file() else 0
        if count != 1:
            found.append(f"{mutant.id}: {mutant.was!r} stands {count} times in {mutant.file}, not once")
        if mutant.was == mutant.becomes:
            found.append(f"{mutant.id}: changes nothing")
        found += [f"{mutant.id}: no file {test}" for test in mutant.tests if not (root / test).is_file()]
        if not mutant.tests:
            found.append(f"{mutant.id}: names no test")
    return found


class Copy:
    """The project below another root, from which `posttrain` is imported."""

    def __init__(self, root: Path) -> None:
        self.root = root / "posttrain"
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        for name in names:
            if (ROOT / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name, follow_symlinks=False)
        self.environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(root)}
        where = self._run(["-c", "import posttrain.stage.files as module; print(module.__file__)"], 60)[1].strip()
        assert where == str(self.root / "stage" / "files.py"), f"the copy would test {where}"

    def test(self, tests: Iterable[str]) -> tuple[str, str]:
        """Return the outcome of test files up to their first failure, and pytest's last line."""
        code, output = self._run(["-m", "pytest", "-x", "-q", "-m", "not slow", *tests], TIMEOUT_SECONDS)
        last = (output.strip().splitlines() or [""])[-1]
        return (TIMEOUT if code is None else OUTCOMES.get(code, BROKEN)), last

    def test_mutant(self, mutant: Mutant) -> tuple[str, str]:
        """Return the same with a mutant in place."""
        path = self.root / mutant.file
        text = path.read_text("utf-8")
        path.write_text(text.replace(mutant.was, mutant.becomes), "utf-8")
        try:
            return self.test(mutant.tests)
        finally:
            path.write_text(text, "utf-8")

    def _run(self, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Return exit code and output of Python; no code where it took too long, and all its children ended."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.root,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            return code, output.read()


class Results:
    """What was found so far, a line each, by digests of all that decides it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.known = {line["key"]: line for line in map(json.loads, lines)}
        self._lock = threading.Lock()

    def outcome(self, key: str, name: str, find: Callable[[], tuple[str, str]]) -> str:
        """Return the outcome under a key; what is not known yet is found, printed and kept."""
        if key not in self.known:
            started = time.monotonic()
            outcome, last = find()
            line = {"key": key, "name": name, "outcome": outcome, "last": last}
            line["seconds"] = round(time.monotonic() - started, 1)
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                self.known[key] = line
                print(f"{outcome:<9}{line['seconds']:>6} s  {name}", flush=True)
        return str(self.known[key]["outcome"])


def digest(parts: Iterable[str | Path]) -> str:
    """Return the SHA-256 over texts and the contents of files."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(hashlib.sha256(part.read_bytes() if isinstance(part, Path) else part.encode()).digest())
    return hashed.hexdigest()


def run_all(mutants: Sequence[Mutant], results: Results, workers: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return the outcome of each test file without mutants, and of each mutant whose tests are all green."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(workers) as pool:
        idle: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(workers):
            idle.put(copy := Copy(Path(folder, str(number))))
        # Digests are of what the copies hold, since the clone may be edited meanwhile.
        tests = {test: _key_of_test(test, mutants, copy.root) for mutant in mutants for test in mutant.tests}
        keys = {mutant.id: _key_of_mutant(mutant, copy.root) for mutant in mutants}

        def with_copy(find: Callable[[Copy], tuple[str, str]]) -> tuple[str, str]:
            copy = idle.get()
            try:
                return find(copy)
            finally:
                idle.put(copy)

        def baseline(test: str) -> str:
            return results.outcome(tests[test], test, lambda: with_copy(lambda copy: _green(copy.test([test]))))

        def one(mutant: Mutant) -> str:
            return results.outcome(keys[mutant.id], mutant.id, lambda: with_copy(lambda copy: copy.test_mutant(mutant)))

        green = dict(zip(tests, pool.map(baseline, tests), strict=True))
        fit = [mutant for mutant in mutants if all(green[test] == GREEN for test in mutant.tests)]
        return green, dict(zip((mutant.id for mutant in fit), pool.map(one, fit), strict=True))


def _key_of_test(test: str, mutants: Sequence[Mutant], root: Path) -> str:
    helpers = [*sorted((root / "tests").glob("*.py")), *sorted((root / "tests").glob("*/conftest.py"))]
    files = sorted({root / mutant.file for mutant in mutants if test in mutant.tests})
    return digest(["no mutant", test, root / test, *helpers, *files])


def _key_of_mutant(mutant: Mutant, root: Path) -> str:
    return digest([json.dumps(dataclasses.asdict(mutant)), root / mutant.file, *map(root.joinpath, mutant.tests)])


def _green(found: tuple[str, str]) -> tuple[str, str]:
    outcome, last = found
    return {SURVIVED: GREEN, KILLED: "red"}.get(outcome, outcome), last


def report(lists: dict[str, list[Mutant]], green: dict[str, str], outcomes: dict[str, str]) -> float:
    """Print what was not noticed and a table by list; return the share that was noticed."""
    print()
    for mutant in (mutant for part in lists.values() for mutant in part):
        if (outcome := outcomes.get(mutant.id, "not run")) != KILLED:
            print(f"{outcome:<9} {mutant.id} ({mutant.file}): {', '.join(mutant.tests)}")
    for test in (test for test, outcome in green.items() if outcome != GREEN):
        print(f"{green[test]:<9} without a mutant: {test}")
    kinds = (KILLED, SURVIVED, TIMEOUT, BROKEN)
    print(f"{'':<10}{'mutants':>9}{''.join(f'{kind:>10}' for kind in kinds)}")
    found = {name: Counter(outcomes.get(mutant.id) for mutant in part) for name, part in lists.items()}
    found["all"] = sum(found.values(), Counter())
    for name, counts in found.items():
        print(f"{name:<10}{counts.total():>9}{''.join(f'{counts[kind]:>10}' for kind in kinds)}")
    rate = found["all"][KILLED] / found["all"].total()
    print(f"{rate:.1%} noticed")
    return rate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="identifiers of mutants, or names of their lists; all by default")
    parser.add_argument("--workers", type=int, default=2, help="pytest processes at a time")
    parser.add_argument("--results", type=Path, default=ROOT / "outputs" / "mutants.jsonl")
    options = parser.parse_args()
    lists, wanted = read_mutants(ROOT), set(options.names)
    if problems := problems_of([mutant for part in lists.values() for mutant in part], ROOT):
        print("\n".join(problems), file=sys.stderr)
        return 1
    if unknown := wanted - lists.keys() - {mutant.id for part in lists.values() for mutant in part}:
        print(f"no mutant or list {', '.join(sorted(unknown))}; lists: {', '.join(lists)}", file=sys.stderr)
        return 2
    chosen = {name: [m for m in part if not wanted or {name, m.id} & wanted] for name, part in lists.items()}
    chosen = {name: part for name, part in chosen.items() if part}
    mutants = [mutant for part in chosen.values() for mutant in part]
    green, outcomes = run_all(mutants, Results(options.results), options.workers)
    rate = report(chosen, green, outcomes)
    return 0 if rate >= LEAST_RATE and set(green.values()) == {GREEN} else 1


if __name__ == "__main__":
    sys.exit(main())
