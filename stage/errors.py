"""The errors a user can mend, with their exit codes.

    PosttrainError          1  the stage failed for a reason that we can name
    ├── UsageError          2  a configuration, file or row that the user must mend
    ├── NonFiniteLossError  1  a loss became NaN or infinite
    ├── LeaseHeldError     75  someone else is writing this artifact: come again
    └── StoppedError       75  asked to stop: run the same command to go on

Exit code 0 is done, 1 failed, 2 usage, 75 requeue. Anything that is not a PosttrainError is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REQUEUE = 75


class PosttrainError(Exception):
    """A failure shown as one line: the value, what is required, and the fix."""

    exit_code = EXIT_FAILED


class UsageError(PosttrainError):
    """The user's configuration, file or row is wrong."""

    exit_code = EXIT_USAGE


class NonFiniteLossError(PosttrainError):
    """A loss became NaN or infinite; no checkpoint of that state is committed."""


class LeaseHeldError(PosttrainError):
    """Another process holds the lease of the artifact."""

    exit_code = EXIT_REQUEUE


class StoppedError(PosttrainError):
    """The stage was asked to stop, saved its state if it has any, and is not finished."""

    exit_code = EXIT_REQUEUE


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
