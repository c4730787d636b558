"""What a terminal does to a launcher: Ctrl-C, a hang-up, a reader that goes away or stands still, in every phase.

The stage is a curation of seconds. That it was asked, and not killed, shows in the words that it leaves itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.pipeline.watch.stopping import AGAIN_SECONDS
from posttrain.stage.lease import holder
from posttrain.stage.outcome import read_outcome

RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: own
stages:
  rows: {run: data.curate, with: {record_type: demonstration, sources: [{name: mine, path: rows.jsonl}]}}
"""
TWO_MORE = """\
  before:
    run: data.demo
    with:
      {num_texts: 3, num_demonstrations: 15, num_comparisons: 15, num_gold_comparisons: 15, num_evaluation_items: 15}
  after:
    run: data.curate
    inputs: {sources: before}
    with: {record_type: demonstration, sources: [{name: demo, file: demonstrations.jsonl}]}
"""
ASKED = "stopped on request; it starts again from the beginning"
LONG, SHORT = 60_000, 3
SIGNALLED = """
import sys
sys.path.insert(0, {tests!r})
from forked_stages import signal_in
signal_in({function!r}, {call}, {number})
from posttrain.pipeline.cli import main
sys.exit(main({arguments!r}))
"""


class Workspace:
    """A folder in which `posttrain run` curates a file of rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "conf" / "recipe").mkdir(parents=True)
        (path / "conf" / "recipe" / "own.yaml").write_text(RECIPE)

    def write_rows(self, count: int) -> None:
        rows = ({"prompt": f"question {i} about {i * 7919 % 10007}", "completion": f"answer {i}"} for i in range(count))
        (self.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(self, *overrides: str) -> list[str]:
        return ["run", "recipe=own", "--config-dir", "conf", "tracking=none", "run_name=r", *overrides]

    def command(self, *overrides: str) -> list[str]:
        return [sys.executable, "-m", "posttrain.pipeline.cli", *self.arguments(*overrides)]

    def running(self) -> bool:
        return any(holder(lease) for lease in self.path.glob("outputs/work/rows-*/lease"))

    def artifacts(self) -> int:
        return len(list(self.path.glob("outputs/artifacts/rows-*/manifest.json")))

    def words(self, run: str = "r") -> str:
        """What the last attempt of the stage left."""
        outcome = read_outcome(self.path / "outputs" / "runs" / run / "stages" / "rows" / "outcome.json")
        assert outcome is not None
        return outcome.message

    def run_in_terminal(self, line: str, act: Callable[[int, int], None]) -> tuple[int, str]:
        """Run a shell line as the foreground of a terminal; ``act`` gets the shell and the terminal's other end.

        Returns what the shell left as its exit code, and what the terminal showed while it was open.
        """
        pid, master = pty.fork()
        if pid == 0:
            os.chdir(self.path)
            os.execv("/bin/bash", ["bash", "-c", line])
        try:
            act(pid, master)
            shown = b"".join(chunks(master))
        finally:
            with contextlib.suppress(OSError):
                os.close(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


def chunks(master: int) -> Iterator[bytes]:
    """Yield what a terminal shows until its last process has ended."""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 65536):
            yield chunk


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.02)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_ctrl_c_under_tee_asks_the_stage_to_save(workspace: Workspace) -> None:
    """The terminal interrupts `tee` too, and what the launcher then says finds no reader."""
    workspace.write_rows(LONG)

    def interrupt(pid: int, master: int) -> None:
        until(workspace.running)
        os.write(master, b"\x03")

    line = f"set -o pipefail; trap : INT; {shlex.join(workspace.command())} | tee log; exit ${{PIPESTATUS[0]}}"
    code, _ = workspace.run_in_terminal(line, interrupt)
    assert (code, workspace.words(), workspace.artifacts()) == (75, ASKED, 0)


def test_who_insists_kills_a_stage_that_does_not_answer(workspace: Workspace) -> None:
    workspace.write_rows(LONG)

    def insist(pid: int, master: int) -> None:
        until(workspace.running)
        (lease,) = workspace.path.glob("outputs/work/rows-*/lease")
        os.kill(json.loads(lease.read_text())["pid"], signal.SIGSTOP)
        while workspace.running():
            os.write(master, b"\x03")
            time.sleep(AGAIN_SECONDS)

    code, shown = workspace.run_in_terminal(f"exec {shlex.join(workspace.command())}", insist)
    assert (code, workspace.words()) == (75, "ended on request before it could save; earlier checkpoints stand")
    assert "SIGINT once more: stages are killed" in shown


def test_a_launcher_that_fails_itself_asks_the_stages_to_save(workspace: Workspace) -> None:
    """It cannot write the log of a stage that it wants to start beside the one that runs."""
    workspace.write_rows(LONG)
    (workspace.path / "conf" / "recipe" / "own.yaml").write_text(RECIPE + TWO_MORE)
    (workspace.path / "outputs" / "runs" / "r" / "logs").mkdir(parents=True)
    (workspace.path / "outputs" / "runs" / "r" / "logs" / "after").touch()
    done = subprocess.run(workspace.command(), cwd=workspace.path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "logs/after: is in the way (file exists)" in done.stderr
    assert (workspace.words(), workspace.artifacts()) == (ASKED, 0)


def test_a_closed_terminal_asks_the_stage_to_save(workspace: Workspace) -> None:
    """The kernel hangs up, the shell hangs up once more on its way, and every write to the terminal fails."""
    workspace.write_rows(LONG)

    def close(pid: int, master: int) -> None:
        until(workspace.running)
        os.close(master)
        os.kill(pid, signal.SIGHUP)

    code, _ = workspace.run_in_terminal(f"exec {shlex.join(workspace.command())}", close)
    assert (code, workspace.words(), workspace.artifacts()) == (75, ASKED, 0)


def test_a_reader_that_has_seen_enough_stops_nothing(workspace: Workspace) -> None:
    workspace.write_rows(SHORT)
    line = f"{shlex.join(workspace.command())} 2>errors | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=workspace.path, capture_output=True, text=True, check=True)
    assert (done.stdout, workspace.artifacts()) == ("0\n", 1)
    (said,) = (workspace.path / "errors").read_text().splitlines()
    assert said == "standard output: Broken pipe; the run goes on, `posttrain status` tells how far it is"


def test_a_reader_that_stands_still_holds_nothing_up(workspace: Workspace) -> None:
    workspace.write_rows(SHORT)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    process = subprocess.Popen(workspace.command(), cwd=workspace.path, stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    until(workspace.artifacts)
    with os.fdopen(reader, "rb") as file:
        shown = file.read()
    assert process.wait() == 0
    assert b"run r" in shown.lstrip(b".")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_parent_ignores_is_ignored(workspace: Workspace, number: signal.Signals) -> None:
    """`nohup`, and a job that a script starts in the background."""
    workspace.write_rows(LONG)
    ignoring = f"trap '' {number.name.removeprefix('SIG')}; exec {shlex.join(workspace.command())}"
    process = subprocess.Popen(
        ["bash", "-c", ignoring], cwd=workspace.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(workspace.running)
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate()
    assert (process.returncode, workspace.words()) == (75, ASKED)
    assert number.name not in shown
    assert "SIGTERM" in shown


def test_one_ctrl_c_stops_a_whole_sweep(workspace: Workspace) -> None:
    workspace.write_rows(LONG)
    sweep = workspace.command("stages.rows.with.eval_fraction=0.1,0.2,0.3")
    process = subprocess.Popen(
        sweep, cwd=workspace.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(workspace.running)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert (workspace.words("r-eval_fraction-0.1"), workspace.artifacts()) == (ASKED, 0)
    assert not (workspace.path / "outputs" / "runs" / "r-eval_fraction-0.2").exists()
    last = errors.splitlines()[-1]
    assert last.startswith("not run: stages.rows.with.eval_fraction=0.2, stages.rows.with.eval_fraction=0.3; ")


PHASES = {
    "composing": ("compose_values", 1),
    "hashing": ("sha256_file", 1),
    "taking the lease": ("__enter__", 2),
    "starting a stage": ("_start", 1),
    "watching it": ("_check", 3),
    "reporting": ("_print_table", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_ends_the_launcher_in_words(workspace: Workspace, phase: str) -> None:
    workspace.write_rows(SHORT if phase == "reporting" else LONG)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    function, call = PHASES[phase]
    program = SIGNALLED.format(
        tests=str(Path(__file__).parents[1]),
        function=function,
        call=call,
        number=int(numbers[len(phase) % 4]),
        arguments=workspace.arguments(),
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workspace.path, capture_output=True, text=True, check=False
    )
    finished = phase == "reporting"
    assert done.returncode == (0 if finished else 75), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert workspace.artifacts() == finished
    assert not workspace.running()
    if not finished:
        assert "stopped: " in done.stderr
