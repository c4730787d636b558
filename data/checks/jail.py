"""Runs one Python program and its tests where they can harm nothing; `posttrain.data.checks.code` starts this process.

Three processes. This one enters namespaces of its own (user, process ids, network, IPC, host name) and watches time and
memory. Its child is the first process of the new namespace, which ends with it: it builds a root of its own,
read-only but for a small ``/tmp``, with the interpreter and the system's libraries and no ``/proc``. Its child gives up
all rights, takes limits, and runs the program. Only the standard library is used, and nothing of ours is imported.

Without namespaces (``sandbox`` false) there are the limits, a clean environment and an own folder, and no walls.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

FAILED, NO_SANDBOX, OUT_OF_TIME, OUT_OF_MEMORY, TOO_MANY, LEFT_RUNNING = 1, 90, 91, 92, 93, 94
"""Exit codes of this process; 0 says that all tests passed."""
LINGER_SECONDS = 0.5
"""How long what a program started may still take to end after it."""
MOST_SAID = 2000
_USER, _GROUP_OF_NOBODY = 1000, 65534
_MOUNTS = 0x00020000
_NAMESPACES = 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""Host name, IPC, users, process ids, network."""
_MS_BIND_RECURSIVE, _MS_PRIVATE_RECURSIVE, _MS_NOSUID, _MS_NODEV = 4096 | 16384, 16384 | 1 << 18, 2, 4
_MOUNT_SETATTR, _HERE, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1 | 2
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES, _DROP_BOUND, _SUBREAPER = 1, 38, 24, 36
_EXECUTABLE = os.path.realpath(sys.executable)
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run the order that stands on standard input, print what was said of it, and exit as the codes above say."""
    order: dict[str, Any] = json.load(sys.stdin)
    _checked(_libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL), "prctl")
    if os.getppid() != order["parent"]:
        sys.exit(FAILED)
    order["passed"] = os.urandom(16).hex()
    reads, writes = os.pipe()
    try:
        if order["sandbox"]:
            _enter_namespaces()
        else:
            _checked(_libc.prctl(_SUBREAPER, 1), "prctl")
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reads)
            _in_child(order, writes, told)
        os.close(writes)
        os.close(told)
        if problem := _read_all(ready):
            raise OSError(problem)
    except OSError as error:
        print(json.dumps({"said": str(error)}))
        sys.exit(NO_SANDBOX)
    code, said = _watch(child, reads, order)
    passed = code == 0 and said == order["passed"]
    print(json.dumps({"said": "" if passed else said.replace(order["passed"], "")}))
    sys.exit(0 if passed else code or FAILED)


def _read_all(pipe: int) -> str:
    with open(pipe, encoding="utf-8", errors="replace") as file:
        return file.read()


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _enter_namespaces() -> None:
    """Leave the machine's namespaces; the root user becomes one that limits hold for, others stay who they are."""
    own, user, group = os.getpid(), os.geteuid(), os.getegid()
    reads, writes = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(writes)
        os.read(reads, 1)
        try:
            _map_users(own, user, group)
        except OSError:
            os._exit(1)
        os._exit(0)
    try:
        _checked(_libc.unshare(_NAMESPACES), "unshare")
    finally:
        os.close(writes)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("uid_map: users cannot be mapped into a namespace")
    with contextlib.suppress(OSError):  # where /proc/sys is read-only, a namespace within ours gives no more rights
        Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="ascii")
    if user == 0:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _map_users(process: int, user: int, group: int) -> None:
    folder = Path(f"/proc/{process}")
    if user == 0:
        (folder / "uid_map").write_text(f"0 0 1\n{_USER} {_GROUP_OF_NOBODY} 1\n", encoding="ascii")
        (folder / "gid_map").write_text(f"0 0 1\n{_USER} {_GROUP_OF_NOBODY} 1\n", encoding="ascii")
        return
    (folder / "uid_map").write_text(f"{_USER} {user} 1\n", encoding="ascii")
    (folder / "setgroups").write_text("deny", encoding="ascii")
    (folder / "gid_map").write_text(f"{_USER} {group} 1\n", encoding="ascii")


def _in_child(order: dict[str, Any], out: int, told: int) -> None:
    """Be the first process of the sandbox, or the program where there is none; this does not return."""
    code = FAILED
    try:
        _checked(_libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL), "prctl")
        if order["sandbox"]:
            _build_root(order["limits"]["folder_bytes"])
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.close(told)
        code = _first_process(order, out) if order["sandbox"] else _program(order, out)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(told, str(error).encode())
    finally:
        os._exit(code)


def _build_root(folder_bytes: int) -> None:
    """Make a new root of what a program of Python needs, read-only but for /tmp, and leave the old one."""
    prefixes = {sys.base_prefix, os.path.realpath(sys.base_prefix), str(Path(os.__file__).parent), _EXECUTABLE}
    _checked(_libc.unshare(_MOUNTS), "unshare mounts")  # the one that watches keeps its /proc
    _mount("none", "/", "", _MS_PRIVATE_RECURSIVE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.chdir("/tmp")
    for name in ("old", "new"):
        Path(name).mkdir()
    _checked(_libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", *sorted(prefixes)):
        _lend(path)
    for name in ("null", "zero", "urandom"):
        _lend(f"/dev/{name}")
    Path("/new/tmp").mkdir()
    _mount("/new", "/new", "", _MS_BIND_RECURSIVE)
    _read_only("/new")
    _mount("tmpfs", "/new/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={folder_bytes},mode=1777")
    os.chdir("/new")
    _checked(_libc.umount2(b"/old", 2), "umount")
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", 2), "umount")
    os.chdir("/tmp")


def _lend(path: str) -> None:
    """Show a path of the old root in the new one, unless it is shown already; a link stays a link."""
    new, old = Path("/new" + path), Path("/old" + path)
    if path == "/" or new.is_symlink() or new.exists() or not (old.is_symlink() or old.exists()):
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    if old.is_symlink():
        new.symlink_to(old.readlink())
        return
    if old.is_dir():
        new.mkdir()
    else:
        new.touch()
    _mount(str(old), str(new), "", _MS_BIND_RECURSIVE)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    given = [source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None]
    _checked(_libc.mount(*given), f"mount {target}")


def _read_only(path: str) -> None:
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), _HERE, path.encode(), _RECURSIVE, attributes, ctypes.c_size_t(32)
    )
    _checked(result, f"mount_setattr {path}")


def _first_process(order: dict[str, Any], out: int) -> int:
    """Run the program as a child; return its exit code once all that it started has ended."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            _give_up_rights()
            code = _program(order, out)
        finally:
            os._exit(code)
    os.close(out)
    while True:
        process, status = os.wait()
        if process == child:
            break
    deadline = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return FAILED if os.waitstatus_to_exitcode(status) else 0
    return LEFT_RUNNING


def _give_up_rights() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_USER, _USER, _USER)
        os.setresuid(_USER, _USER, _USER)
    bound = 0
    while _libc.prctl(_DROP_BOUND, bound) == 0:
        bound += 1
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, none), "capset")
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")


def _program(order: dict[str, Any], out: int) -> int:
    """Run program and tests in this process; write how it went, and return 0 where all tests passed."""
    limits = order["limits"]
    seconds = math.ceil(limits["seconds"])
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
    ):
        resource.setrlimit(kind, (most, most))
    os.setsid()
    os.environ["HOME"] = os.environ["TMPDIR"] = str(Path.cwd())
    sys.executable = _EXECUTABLE
    try:
        _run(order["program"], order["tests"])
    except BaseException as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        os.write(out, said.encode("utf-8", "replace")[:MOST_SAID])
        return FAILED
    os.write(out, order["passed"].encode())
    return 0


def _run(program: str, tests: str) -> None:
    module = types.ModuleType("program")
    sys.modules["program"] = module
    space = module.__dict__
    exec(compile(program, "<program>", "exec"), space)
    before = dict(space)
    exec(compile(tests, "<tests>", "exec"), space)
    for name, value in list(space.items()):
        if before.get(name) is value:
            continue
        if name.startswith("test") and isinstance(value, types.FunctionType):
            value()
        elif isinstance(value, type) and "unittest" in sys.modules:
            _run_cases(value)


def _run_cases(case: type) -> None:
    import unittest

    if issubclass(case, unittest.TestCase):
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        if bad := [*result.failures, *result.errors]:
            raise AssertionError(bad[0][1].strip().splitlines()[-1])


def _watch(child: int, out: int, order: dict[str, Any]) -> tuple[int, str]:
    """Wait for the child, or end it for its time or memory; return its code and what it wrote."""
    limits, said, pause, ended = order["limits"], b"", 0.001, None
    deadline = time.monotonic() + limits["wall_seconds"]
    while ended is None:
        if len(said) < MOST_SAID and select.select([out], [], [], 0)[0]:
            said += os.read(out, MOST_SAID)
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            code = os.waitstatus_to_exitcode(status)
            ended = code if code >= 0 else FAILED
        elif time.monotonic() > deadline:
            ended = OUT_OF_TIME
        else:
            ended = _over(child, limits)
            time.sleep(pause)
            pause = min(0.02, pause * 1.5)
    if not order["sandbox"]:
        ended = _end_all(ended)
    elif not process:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while len(said) < MOST_SAID and select.select([out], [], [], 0)[0] and (more := os.read(out, MOST_SAID)):
        said += more
    return ended, said.decode("utf-8", "replace")


def _over(child: int, limits: dict[str, Any]) -> int | None:
    """Return the code of a limit that the processes below the child are over together; None where they are not."""
    family = _family(child)
    if len(family) > 2 * limits["processes"]:
        return TOO_MANY
    pages = 0
    for process in family:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages += int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return OUT_OF_MEMORY if pages * resource.getpagesize() > limits["memory_bytes"] else None


def _family(process: int) -> list[int]:
    """Return a process and all below it."""
    found = [process]
    for one in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (thread / "children").read_text(encoding="ascii").split())
    return found


def _end_all(code: int) -> int:
    """Kill every process below this one, and wait for them all; some that outlived the program make it a failure."""
    left = False
    while True:
        for process in _family(os.getpid())[1:]:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            left |= os.wait()[0] > 0
        except ChildProcessError:
            return LEFT_RUNNING if left and code == 0 else code


if __name__ == "__main__":
    main()
