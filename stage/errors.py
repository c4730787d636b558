"""The errors a user can mend, with their exit codes.

    PosttrainError          1  the stage failed for a reason that we can name
    ├── UsageError          2  a configuration, file or row that the user must mend
    ├── NonFiniteLossError  1  a loss, or a logit, became NaN or infinite
    ├── LeaseHeldError     75  someone else is writing this artifact: come again
    ├── GateRefusedError    3  a model failed its gate: nothing is built upon it
    └── StoppedError       75  asked to stop: run the same command to go on

Exit code 0 is done, 1 failed, 2 usage, 3 refused by a gate, 75 requeue. Anything that is not a PosttrainError is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_REQUEUE = 75


class PosttrainError(Exception):
    """A failure shown as one line: the value, what is required, and the fix."""

    exit_code = EXIT_FAILED


class UsageError(PosttrainError):
    """The user's configuration, file or row is wrong."""

    exit_code = EXIT_USAGE


class NonFiniteLossError(PosttrainError):
    """A loss became NaN or infinite; no checkpoint of that state is committed."""


class GateRefusedError(PosttrainError):
    """A model failed its gate, and what depends on it was not started."""

    exit_code = EXIT_GATE


class LeaseHeldError(PosttrainError):
    """Another process holds the lease of the artifact."""

    exit_code = EXIT_REQUEUE


class StoppedError(PosttrainError):
    """The stage was asked to stop, saved its state if it has any, and is not finished."""

    exit_code = EXIT_REQUEUE


class DiskFullError(PosttrainError):
    """There is no space, or no quota, for what has to be written."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def from_system(error: Exception, where: str) -> PosttrainError | None:
    """Return what a user can mend of an error of the operating system as one line, or None where it is a bug.

    ``where`` is the folder that was worked in: the libraries that write weights do not say which file it was.
    """
    number = error.errno if isinstance(error, OSError) else None
    path = error.filename if isinstance(error, OSError) and error.filename else where
    if number in _FULL or "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
        return DiskFullError(f"{path}: no space left; make room there, and the same command goes on")
    if number in _NOT_OURS:
        reason = str(error.args[1]).lower()
        return UsageError(
            f"{path}: {reason}; ask its owner for the right to read and write, or give root=DIR (--root DIR)"
        )
    if number in _IN_THE_WAY:
        return UsageError(
            f"{path}: is in the way ({str(error.args[1]).lower()}); move it, or give root=DIR (--root DIR)"
        )
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
