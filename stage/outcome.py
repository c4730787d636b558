"""How a stage process ended: a small file beside its work order; exit codes do not survive `accelerate launch`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

from posttrain.stage.files import write_json_atomic


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and error line of an attempt."""

    code: int
    message: str = ""
    error: str = ""
    """Class of the exception, such as ``LeaseHeldError``; empty after success."""

    def write(self, path: Path) -> None:
        """Leave the outcome for the launcher and `posttrain status`; a full disk changes nothing of how it ended."""
        with contextlib.suppress(OSError):
            write_json_atomic(path, dataclasses.asdict(self))


def read_outcome(path: Path) -> Outcome | None:
    """Return what a stage process left, or None when it left nothing: it was killed, or is still running."""
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
