"""The machines of a run without a scheduler of jobs: which this one is, and the words that they exchange.

The same command is given on every machine, which all see the folder `root`. The first schedules the stages; the others
start their ranks when it says so, over a connection that stays open: where it ends, whoever was at the other end is
gone. Each message is a line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Mapping
from typing import Any

from posttrain.pipeline.config.pipeline import DistributedConfig
from posttrain.stage.errors import UsageError

PORT = 29500
RANK_NAMES = ("NODE_RANK", "PET_NODE_RANK", "GROUP_RANK", "SKYPILOT_NODE_RANK", "JOB_COMPLETION_INDEX", "RANK")
"""Environment variables that number machines: torchrun's, SkyPilot's, those of a Kubernetes Job and of a PyTorchJob."""
ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A machine without power sends no end of a connection: the kernel asks, and gives it up after half a minute."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of a run's machines this is, from 0, and where the first of them is reached."""

    rank: int = 0
    of: int = 1
    address: str = "127.0.0.1"
    port: int = PORT


ALONE = Place()


def place_of(asked: DistributedConfig, environment: Mapping[str, str]) -> Place:
    """Return this machine's place, by knobs or else by the environment; raise UsageError where neither says it."""
    if asked.num_machines == 1:
        return ALONE
    found = {"machine_rank": asked.machine_rank, "main_port": asked.main_port}
    names = {"machine_rank": RANK_NAMES, "main_port": ("MASTER_PORT",)}
    for knob, variables in names.items():
        if found[knob] is None and (name := next((one for one in variables if environment.get(one)), None)):
            if not environment[name].isdecimal():
                raise UsageError(f"{name}: {environment[name]!r} is no whole number; give distributed.{knob}")
            found[knob] = int(environment[name])
    address, rank = asked.main_address or environment.get("MASTER_ADDR"), found["machine_rank"]
    if rank is None:
        raise UsageError(
            f"distributed.machine_rank: missing, with distributed.num_machines={asked.num_machines}; "
            "give 0 on the first machine, 1 on the next, or set NODE_RANK"
        )
    if rank >= asked.num_machines:
        raise UsageError(
            f"distributed.machine_rank: {rank}, but distributed.num_machines is {asked.num_machines}; count from 0"
        )
    if not address:
        raise UsageError("distributed.main_address: missing; give where machine 0 is reached, or set MASTER_ADDR")
    port = found["main_port"]
    return Place(rank, asked.num_machines, address, PORT if port is None else port)


class Line:
    """A connection to another machine."""

    def __init__(self, connection: socket.socket) -> None:
        self.lost = False
        self._connection = connection
        self._begun = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.setblocking(False)

    def send(self, **message: Any) -> None:
        """Send a message; that it cannot arrive shows in `lost`."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.lost = True

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that came since, and note where there will be no more."""
        try:
            while not self.lost:
                part = self._connection.recv(1 << 16)
                self.lost = not part
                self._begun += part
        except BlockingIOError:
            pass
        except OSError:
            self.lost = True
        *whole, self._begun = self._begun.split(b"\n")
        try:
            messages = [json.loads(text) for text in whole]
        except ValueError:
            messages = [None]
        if all(isinstance(message, dict) for message in messages):
            return messages
        self.close()  # whoever this is speaks something else
        return []

    def close(self) -> None:
        """Let the other side know that there will be no more."""
        self.lost = True
        self._connection.close()
