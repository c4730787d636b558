"""Does the program of a response pass its tests? Both run in a sandbox (`posttrain.data.checks.jail`).

The tests are Python of the reference, run behind the program and in its names: what they assert must hold, and every
function ``test…`` and every case of unittest that they define must pass. Programs have Python's standard library. A
program that looks for how it is judged can deceive tests that run in its own process; it can touch nothing else.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings

from posttrain.data.checks import jail
from posttrain.stage.errors import PosttrainError, UsageError

log = logging.getLogger(__name__)

UNSANDBOXED = "POSTTRAIN_UNSANDBOXED_CODE"
"""Variable that, set to 1, lets programs run without a sandbox where there is none: it is about the machine."""
START_SECONDS = 60.0
"""How long a busy machine may take to start a program's process and to end it."""
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_WHY = {
    jail.OUT_OF_TIME: "took too long",
    jail.OUT_OF_MEMORY: "took too much memory",
    jail.TOO_MANY: "started too many processes",
    jail.LEFT_RUNNING: "left processes running",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may take."""

    seconds: float = 5.0
    """Of a processor, for each process."""
    wall_seconds: float = 20.0
    memory_bytes: int = 512 << 20
    """Of all its processes together."""
    processes: int = 16
    files: int = 32
    """Open at once, for each process."""
    file_bytes: int = 16 << 20
    folder_bytes: int = 64 << 20
    """Of all files in its folder."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program did."""

    passed: bool
    why: str = ""
    """What failed, in the words of the program's own process: to be read by people, and not to be trusted."""


def passes_tests(response: str, reference: str) -> float:
    """Return 1 when the program of the response passes the tests of the reference, and leaves nothing running.

    The program is the last fenced block of Python, or the whole response where it has no fence. Raises PosttrainError
    when the sandbox itself fails.
    """
    program = program_of(response)
    return float(bool(program.strip()) and run_tests(program, reference, sandbox=sandboxed()).passed)


def program_of(response: str) -> str:
    """Return the program in a response: its last fenced block of Python, or all of it without a fence."""
    blocks = [
        code for language, code in _FENCE.findall(response) if language.lower() in ("", "py", "python", "python3")
    ]
    return blocks[-1] if blocks else response


def run_tests(program: str, tests: str, limits: Limits | None = None, *, sandbox: bool = True) -> Outcome:
    """Run tests behind a program, in processes of their own that all end with it.

    Raises PosttrainError when the process that judges cannot do so.
    """
    order = {
        "program": program,
        "tests": tests,
        "limits": dataclasses.asdict(limits or Limits()),
        "sandbox": sandbox,
        "parent": os.getpid(),
    }
    with tempfile.TemporaryDirectory(prefix="posttrain-code-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", jail.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd=folder,
            start_new_session=True,
        )
        with process:
            try:
                said, errors = process.communicate(
                    json.dumps(order).encode(), timeout=(limits or Limits()).wall_seconds + START_SECONDS
                )
            except subprocess.TimeoutExpired:
                raise PosttrainError(
                    "scorer 'code': the process that runs programs does not end; look at the machine's load"
                ) from None
            finally:
                process.kill()
    return _outcome(process.returncode, said, errors)


def _outcome(code: int, said: bytes, errors: bytes) -> Outcome:
    try:
        why = json.loads(said)["said"]
    except ValueError:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {code}"]
        raise PosttrainError(f"scorer 'code': the process that runs programs failed: {last[0]}") from None
    if code == jail.NO_SANDBOX:
        raise PosttrainError(f"scorer 'code': no sandbox ({why})")
    return Outcome(code == 0, _WHY.get(code, why or "ended before its tests did") if code else "")


def require_sandbox() -> None:
    """Raise UsageError where programs cannot be kept in, and nobody allowed them to run without walls."""
    sandboxed()


@functools.cache
def sandboxed() -> bool:
    """Return whether programs run in a sandbox; False where there is none and they may run nevertheless.

    Raises UsageError where they may not.
    """
    try:
        run_tests("one = 1", "assert one == 1")
        return True
    except PosttrainError as error:
        if os.environ.get(UNSANDBOXED) == "1":
            log.warning("%s; programs run with limits alone, since %s=1", error, UNSANDBOXED)
            return False
        raise UsageError(
            f"{error}; the programs that it runs need Linux 5.14 with user namespaces (user.max_user_namespaces above "
            f"0, and no profile that forbids them), or {UNSANDBOXED}=1 on a machine where they may do as they like"
        ) from None


def parse_tests(reference: str) -> ast.Module:
    """Return the tests of a reference. Raises UsageError where they are no Python, or test nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(reference)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"reference {reference[:60]!r}: no Python ({error}); give tests of the program") from None
    if not any(_tests(node) for node in tree.body):
        raise UsageError(
            f"reference {reference[:60]!r}: runs no test; assert something, call what does, or define test functions"
        )
    return tree


def _tests(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("test")
    if isinstance(node, ast.ClassDef):
        return any(isinstance(inner, ast.FunctionDef) and inner.name.startswith("test") for inner in node.body)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return not isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AsyncFunctionDef, ast.Pass))
