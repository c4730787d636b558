"""The first machine's side of a run on several: it has the others start and end their ranks of a stage."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from posttrain.pipeline.local.machines import Line, Place
from posttrain.stage.errors import UsageError
from posttrain.stage.ranks import free_port

GRACE_SECONDS = 15.0
"""How long ranks here may take to say themselves what ended them, once others are gone."""


class Leader:
    """The other machines of a run, as the first one sees them; of a run on one machine there are none."""

    def __init__(self, place: Place, runs: Sequence[str] = ()) -> None:
        """``runs`` are the folders of the runs that all machines are to be told of alike."""
        self.place = place
        self._runs = list(runs)
        self._lines: dict[int, Line] = {}
        self._guests: list[Line] = []
        self._at_work: set[int] = set()
        self._gone: dict[int, str] = {}
        self._gone_since = 0.0
        self.grace_seconds = GRACE_SECONDS
        self._server = _listening(place.port) if place.of > 1 else None

    def missing(self) -> list[int]:
        """Return the machines that are not there."""
        self._hear()
        return [rank for rank in range(1, self.place.of) if rank not in self._lines]

    def ready(self) -> bool:
        """Return whether all are there, and none has ranks any more of what ran before."""
        return not self.missing() and not self._at_work

    def start(self, run: str, stage: str, log: Path) -> int:
        """Have the others start their ranks of a stage of a run; return the port at which all ranks are to meet."""
        port = free_port()
        self._gone.clear()
        self._at_work = set(self._lines)
        for line in self._lines.values():
            line.send(do="start", run=run, stage=stage, log=log.name, port=port)
        return port

    def lost(self) -> str | None:
        """Return which machines, or ranks on them, ended before those here, once these had time to notice."""
        self._hear()
        if not self._gone or time.monotonic() - self._gone_since < self.grace_seconds:
            return None
        return "; ".join(self._gone.values())

    def went(self) -> str | None:
        """Return which machines went away while the stage ran, whatever ranks made of it."""
        self._hear()
        return "; ".join(words for words in self._gone.values() if words.startswith("machine")) or None

    def end(self) -> None:
        """Have the others end what is left of their ranks; `ready` says when they have."""
        for line in self._lines.values():
            line.send(do="end")

    def dismiss(self, code: int) -> None:
        """Tell the others that the command has ended with an exit code, which is theirs too."""
        self._hear()
        for line in [*self._lines.values(), *self._guests]:
            line.send(do="exit", code=code)
            line.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _hear(self) -> None:
        if self._server is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                self._guests.append(Line(self._server.accept()[0]))
        for guest in list(self._guests):
            messages = guest.receive()
            if messages or guest.lost:
                self._guests.remove(guest)
            if messages:
                self._welcome(guest, messages[0])
            elif guest.lost:
                guest.close()
        for rank, line in list(self._lines.items()):
            for message in line.receive():
                self._ended(rank, message.get("ended"))
            if line.lost:
                line.close()
                del self._lines[rank]
                self._ended(rank, "machine")

    def _ended(self, rank: int, how: object) -> None:
        """Note that a machine has no ranks any more: with an exit code, or because it is gone itself."""
        if rank not in self._at_work:
            return
        self._at_work.discard(rank)
        if how == 0:
            return
        self._gone_since = self._gone_since if self._gone else time.monotonic()
        self._gone[rank] = f"machine {rank} was lost" if how == "machine" else f"a rank on machine {rank} was lost"

    def _welcome(self, guest: Line, hello: dict[str, object]) -> None:
        rank, runs = hello.get("machine"), hello.get("runs")
        why = None
        if not isinstance(rank, int) or not 0 < rank < self.place.of:
            why = f"machine {rank} is none of 1 to {self.place.of - 1}"
        elif rank in self._lines:
            why = f"machine {rank} is there already; give each machine a distributed.machine_rank of its own"
        elif runs != self._runs:
            why = f"machine 0 runs {', '.join(self._runs)}, machine {rank} {runs}; give both the same command"
        if why is None and isinstance(rank, int):
            self._lines[rank] = guest
        else:
            guest.send(do="refuse", why=why)
            guest.close()


@contextmanager
def leading(place: Place, runs: Sequence[str]) -> Iterator[Leader]:
    """Give the other machines for the time of a command; where it fails, they do."""
    leader = Leader(place, runs)
    try:
        yield leader
    finally:
        leader.dismiss(1)


def _listening(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
    except OSError as error:
        raise UsageError(
            f"distributed.main_port: {port}: {str(error.strerror).lower()}; give another on all machines"
        ) from None
    server.setblocking(False)
    return server
