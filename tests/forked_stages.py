"""Run a stage in a forked child, which may get a signal at its k-th file event or at a moment in time.

The heavy imports happen once, in the parent; each child is a real process that dies a real death. File events are those
that Python can see (`sys.addaudithook`): opening for writing, mkdir, rename, link, remove. Writes from Rust and C++
fall between two of them; killing by the clock reaches those too.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"}


class SignalHook:
    """Counts the file events under ``root``; at event ``at`` (from 1) the process sends itself a signal."""

    def __init__(self, root: Path, at: int | None, number: int, count_file: Path) -> None:
        self.root = str(root)
        self.at = at
        self.number = number
        self.count = 0
        self.count_file = count_file
        self.descriptor = os.open(count_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING:
                return
        elif event in EVENTS:
            path = arguments[0]
        else:
            return
        if not str(path).startswith(self.root) or str(path) == str(self.count_file):
            return
        self.count += 1
        os.pwrite(self.descriptor, str(self.count).encode(), 0)
        if self.count == self.at:
            os.kill(os.getpid(), self.number)


def signal_in(function: str, call: int, *numbers: int, stay: bool = False) -> None:
    """Have this process send itself signals when it enters a function of ours, of that name, for the ``call``-th time.

    For ``prepare``; a profile hook sees the calls, the code under test is as it is. With ``stay`` it never gets on from
    there, also when it was stopped and is continued.
    """
    calls = 0

    def hook(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        if event != "call" or frame.f_code.co_name != function:
            return
        if not str(frame.f_globals.get("__name__")).startswith("posttrain."):
            return
        calls += 1
        if calls == call:
            for number in numbers:
                os.kill(os.getpid(), number)
            while stay:
                time.sleep(1)

    sys.setprofile(hook)


def run_child(
    module: str,
    arguments: list[str],
    root: Path,
    *,
    signal_at: int | None = None,
    number: int = signal.SIGKILL,
    kill_after: float | None = None,
    watch: Callable[[int], bool] | None = None,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> tuple[int, int]:
    """Run a stage in a child; returns its exit code (negative: killed by that signal) and its file events.

    What it prints is appended to ``root/child.log``. ``watch(pid)`` is called again and again until it returns true.
    ``prepare`` is called in the child before the stage.
    """
    count_file = root / ".events"
    stage = importlib.import_module(module)
    main = importlib.import_module("posttrain.stage.entry").stage_main
    package, _, name = module.rpartition(".")
    config_class, kind = STAGES[name] if package == "posttrain.train" else OTHER_STAGES[module]
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # makes torch's pool anew; the threads that load weights would race for it
        log = os.open(root / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)  # past pytest's capture
        os.environ.update(environment or {})
        sys.argv = [module, *arguments]
        sys.addaudithook(SignalHook(root, signal_at, number, count_file))
        code = 1
        try:
            if prepare is not None:
                prepare()
            main(stage.run, getattr(stage, config_class), kind)
        except SystemExit as finished:
            code = int(finished.code or 0)
        finally:
            os._exit(code)
    if kill_after is not None:
        threading.Timer(kill_after, _send, (pid, signal.SIGKILL)).start()
    if watch is not None:
        threading.Thread(target=_watch, args=(watch, pid), daemon=True).start()
    started = time.monotonic()
    _, status = os.waitpid(pid, 0)
    _FINISHED[pid] = time.monotonic() - started
    counted = count_file.read_text() if count_file.exists() else ""  # empty when killed before the first event
    return os.waitstatus_to_exitcode(status), int(counted or 0)


_FINISHED: dict[int, float] = {}
STAGES = {
    "sft": ("SftConfig", "model"),
    "reward": ("RewardConfig", "reward_model"),
    "dpo": ("DpoConfig", "model"),
    "kto": ("KtoConfig", "model"),
    "reference": ("ReferenceConfig", "reference_logps"),
    "base": ("BaseConfig", "model"),
    "ppo": ("PpoConfig", "model"),
    "rloo": ("RlooConfig", "model"),
    "grpo": ("GrpoConfig", "model"),
}
OTHER_STAGES = {
    "posttrain.data.demo": ("DemoConfig", "sources"),
    "posttrain.data.curate": ("CurateConfig", "dataset"),
    "posttrain.data.tokenize": ("TokenizeConfig", "tokens"),
    "posttrain.evaluate.policy": ("PolicyEvaluationConfig", "scores"),
    "posttrain.evaluate.reward": ("RewardEvaluationConfig", "scores"),
}


def _watch(watch: Callable[[int], bool], pid: int) -> None:
    while pid not in _FINISHED and not watch(pid):
        time.sleep(0.005)


def _send(pid: int, number: int) -> None:
    if pid not in _FINISHED:
        os.kill(pid, number)
