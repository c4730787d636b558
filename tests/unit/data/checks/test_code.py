"""The scorer of programs: what passes its tests, and what a program cannot do to the machine."""

import dataclasses
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posttrain.data.checks.code import Limits, Outcome, program_of, run_tests, sandboxed
from posttrain.data.checks.scorers import check_reference, score
from posttrain.stage.errors import UsageError

SMALL = Limits(
    seconds=1, wall_seconds=60, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20, folder_bytes=4 << 20
)
BRIEF = dataclasses.replace(SMALL, wall_seconds=0.3)


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    try:
        sandboxed()
    except UsageError as error:
        pytest.skip(str(error))


def outcome(program: str, tests: str = "assert done") -> Outcome:
    return run_tests(program, tests, SMALL)


def test_a_program_is_read_out_of_a_response() -> None:
    fenced = "Like so:\n```python\ndef f(): return 1\n```\nor better\n```py\ndef f(): return 2\n```\n```sh\nls\n```\n"

    assert program_of(fenced) == "def f(): return 2\n"
    assert program_of("x = 1") == "x = 1"


def test_the_scorer_runs_asserts_test_functions_and_cases_of_unittest() -> None:
    tests = (
        "import unittest\n"
        "def test_two(): assert add(1, 1) == 2\n"
        "class Adds(unittest.TestCase):\n    def test_three(self): self.assertEqual(add(1, 2), 3)\n"
        "assert add(0, 0) == 0\n"
    )

    assert score("code", "Sure!\n```python\ndef add(a, b):\n    return a + b\n```", tests) == 1
    assert outcome("def add(a, b): return a + b - (b == 2)", tests).why.startswith("AssertionError: AssertionError")
    assert outcome("def add(a, b): return 2 if a else 0", tests).passed is False
    assert outcome("def add(a, b): return 3 if b == 2 else 0", tests).why == "AssertionError"


def test_data_classes_and_the_standard_library_work() -> None:
    program = (
        "from __future__ import annotations\nimport dataclasses, tempfile, subprocess, sys, hashlib, threading\n"
        "@dataclasses.dataclass\nclass Pair:\n    one: int\n"
        "with tempfile.NamedTemporaryFile() as file: file.write(b'x'); file.flush(); done = open(file.name).read()\n"
        "said = subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout\n"
        "thread = threading.Thread(target=lambda: None); thread.start(); thread.join()\n"
    )

    assert outcome(program, "assert done == 'x' and said == '42\\n' and Pair(1).one == 1") == Outcome(True)


ENDLESS = {
    "waits": "import time; time.sleep(600)",
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "kills all it can, and ignores signals": (
        "import os, signal, time\n"
        "for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(n, signal.SIG_IGN)\n"
        "for n in (os.getppid(), 1, -1):\n"
        "    for what in (signal.SIGKILL, signal.SIGSTOP):\n"
        "        try: os.kill(n, what)\n"
        "        except OSError: pass\n"
        "time.sleep(600)"
    ),
    "writes without end": (
        "import os\nwhile True:\n    for n in range(1, 32):\n"
        "        try: os.write(n, b'x' * 999)\n        except OSError: pass"
    ),
}
DAEMON = (
    "import os, time\ndone = True\n"
    "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)"
)
SHORT = {
    "loops beyond its share of a processor": ("while True: pass", ""),
    "takes 10 GB": ("done = bytearray(10 << 30)", "MemoryError"),
    "takes more memory in four processes than one may": (
        "import os, time\nfor _ in range(2): os.fork()\n"
        "held = bytearray(150 << 20)\nfor place in range(0, len(held), 4096): held[place] = 1\ntime.sleep(600)",
        "took too much memory",
    ),
    "fills the disk": (
        "for n in range(99):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * 1000000)",
        "No space left",
    ),
    "writes one large file": ("open('/tmp/x', 'wb').write(b'x' * (2 << 20)); done = True", "File too large"),
    "ends as if all were well": ("import os; os._exit(0)", "ended before its tests did"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "leaves a daemon": (DAEMON, "left processes running"),
}


def below() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.mark.parametrize("trick", ENDLESS)
def test_what_does_not_end_is_ended_whole(trick: str) -> None:
    before = below()

    assert run_tests(ENDLESS[trick], "assert done", BRIEF).why in ("took too long", "took too much memory")
    assert below() <= before


@pytest.mark.parametrize("trick", SHORT)
def test_a_trick_is_a_failure_that_leaves_nothing_behind(trick: str) -> None:
    program, why = SHORT[trick]
    before = below()

    found = outcome(program)

    assert not found.passed
    assert why in found.why
    assert below() <= before


def test_the_machine_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_text("as it was")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        program = (
            "import ctypes, os, socket, pathlib\nlibc = ctypes.CDLL(None)\n"
            "def succeeds(result):\n    if result < 0: raise OSError\n"
            f"mine = pathlib.Path({str(mine)!r})\n"
            "attempts = dict(\n"
            "    write=lambda: mine.write_text('gone'), read=lambda: mine.read_text(),\n"
            "    system=lambda: open('/usr/lib/planted', 'w'), root=lambda: open('/planted', 'w'),\n"
            "    secret=lambda: os.environ['SECRET_TOKEN'], accounts=lambda: open('/etc/passwd'),\n"
            "    processes=lambda: os.listdir('/proc/1'), folder=lambda: os.listdir(mine.parent),\n"
            "    mounts=lambda: succeeds(libc.mount(b'tmpfs', b'/usr', b'tmpfs', 0, None)),\n"
            "    rights=lambda: succeeds(libc.unshare(0x10000000)), becomes_root=lambda: os.setuid(0),\n"
            f"    network=lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1),\n"
            ")\n"
            "found = []\n"
            "for name, attempt in attempts.items():\n"
            "    try: attempt(); found.append(name)\n"
            "    except (OSError, KeyError): pass\n"
        )
        assert outcome(program, "assert found == [], found") == Outcome(True)
        with pytest.raises(TimeoutError):
            server.accept()
    assert mine.read_text() == "as it was"


def test_a_program_dies_with_who_judges_it(tmp_path: Path) -> None:
    judging = (
        "from posttrain.data.checks.code import run_tests\n"
        "run_tests('import signal, time; signal.pthread_sigmask(0, range(1, 64)); time.sleep(60)', 'assert True')"
    )
    judge = subprocess.Popen([sys.executable, "-c", judging])
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(family) < 3 and time.monotonic() < deadline:
        family = psutil.Process(judge.pid).children(recursive=True)
    judge.kill()
    judge.wait()

    assert len(family) >= 3
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_without_a_sandbox_nothing_runs_unless_it_is_allowed() -> None:
    judging = (
        "import os\n"
        "from posttrain.data.checks.code import sandboxed\n"
        "from posttrain.data.checks.scorers import require_scorer, score\n"
        "try: require_scorer('code')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "os.environ['POSTTRAIN_UNSANDBOXED_CODE'] = '1'\n"
        "print(score('code', 'x = 1', 'assert x == 1'), score('code', 'x = 1', 'assert x == 2'))\n"
    )
    none_left = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", none_left, "sh", sys.executable, "-c", judging]

    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    assert said[0].startswith("UsageError scorer 'code': no sandbox (unshare: No space left on device); ")
    assert said[0].endswith("or POSTTRAIN_UNSANDBOXED_CODE=1 on a machine where they may do as they like")
    assert said[1] == "1.0 0.0"


def test_without_a_sandbox_limits_hold_and_nothing_outlives_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")

    assert run_tests("import os", "assert 'SECRET_TOKEN' not in os.environ", SMALL, sandbox=False) == Outcome(True)
    assert run_tests(DAEMON, "assert done", SMALL, sandbox=False).why == "left processes running"
    assert run_tests("done = bytearray(10 << 30)", "assert done", SMALL, sandbox=False).why == "MemoryError"
    assert not psutil.Process().children(recursive=True)


@pytest.mark.parametrize(
    ("reference", "message"),
    [("assert f(", "no Python"), ("def check(f):\n    assert f()", "runs no test"), ("import os", "runs no test")],
)
def test_references_that_test_nothing_are_refused(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_reference("code", reference)
