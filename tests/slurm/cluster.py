"""A private Slurm on one machine: munged, slurmctld and some slurmd on loopback, all below one directory.

    python tests/slurm/cluster.py DIRECTORY             start one to play with; Ctrl-C ends it
    python tests/slurm/cluster.py DIRECTORY COMMAND…    run a command in one, for example a shell

It shares nothing with a Slurm that the machine may run: its own key, sockets, ports, configuration, spool and logs. It
needs Slurm's programs (tests/slurm/install.sh), no privileges and no cgroups; jobs run as the user who started it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from keeper import descendants

Result = TypeVar("Result")

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("munge", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# cred_expire: a requeued job is held for that long and a second, two minutes unless told.
# config_overrides: a node has the CPUs and memory that are claimed here, whatever the machine has.
# linuxproc: the one tracker without cgroups that reaches processes in other sessions of a step.
CONFIG = """\
ClusterName=posttrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=10
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdSpoolDir={directory}/spool/%n
SlurmdPidFile={directory}/spool/%n.pid
SlurmdLogFile={directory}/log/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
UnkillableStepTimeout=30
InactiveLimit=0
MinJobAge=300
OverTimeLimit=0
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/log/finished_jobs.txt
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu,nvme
{nodes}
PartitionName=normal Nodes=ALL Default=YES MaxTime=UNLIMITED State=UP PriorityTier=1 GraceTime={grace_seconds}
PartitionName=urgent Nodes=ALL MaxTime=UNLIMITED State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=16000 State=UNKNOWN "
    "Feature=a100,nvlink Gres=gpu:a100:4,nvme:1"
)
# empty files stand for the devices
GRES = "Name=gpu Type=a100 File={directory}/gpu[0-3]\nName=nvme Count=1\n"


def missing_programs() -> list[str]:
    """Return the programs of Slurm and munge that are not installed."""
    return [name for name in DAEMONS + COMMANDS if shutil.which(name, path=SEARCH_PATH) is None]


class SlurmCluster:
    """A running Slurm whose daemons and jobs end with the context, or with the process that made it.

    directory: new or empty, holds everything; its path must be short, for Unix sockets.
    cpus: what each node claims to have. grace_seconds: from the warning of a preempted job to its end.
    """

    def __init__(self, directory: Path, nodes: int = 2, cpus: int = 4, grace_seconds: int = 15) -> None:
        self.directory = directory.resolve()
        if len(str(self.directory)) > 60:
            raise ValueError(f"{self.directory}: over 60 characters, too long for Unix sockets; use a shorter path")
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ValueError(f"{self.directory} is not empty; a cluster starts in a new directory")
        self.names = [f"node{index}" for index in range(1, nodes + 1)]
        self.cpus = cpus
        self.grace_seconds = grace_seconds
        self._keepers: dict[str, list[subprocess.Popen[bytes]]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands talk to this cluster and to no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return kept | {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": SEARCH_PATH}

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes of each daemon and of the steps that it started, by the daemon's name."""
        return {
            name: [process for keeper in keepers for process in descendants(keeper.pid)]
            for name, keepers in self._keepers.items()
        }

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every daemon and every process of every job."""
        end([keeper for keepers in self._keepers.values() for keeper in keepers])
        self._keepers.clear()

    def run(self, *command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's environment and return what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, **options)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def submit(self, script: str, *options: str) -> int:
        """Submit a batch script (its text, with or without a shebang) and return the job's id."""
        if not script.startswith("#!"):
            script = f"#!/bin/bash\n{script}"
        output = ("--output", f"{self.directory}/job-%j.out", "--open-mode", "append", "--chdir", str(self.directory))
        return int(self.run("sbatch", "--parsable", *output, *options, input=script).stdout)

    def output(self, job: int) -> str:
        """Return what a job that `submit` started has printed so far."""
        path = self.directory / f"job-{job}.out"
        return path.read_text() if path.exists() else ""

    def jobs(self, job: int) -> list[dict[str, str]]:
        """Return what Slurm knows of a job: one mapping, or one for each element of a job array."""
        return parse_records(self.run("scontrol", "show", "job", "--oneliner", str(job)).stdout)

    def job(self, job: int | str) -> dict[str, str]:
        """Return what Slurm knows of one job; an array element is named "7_2"."""
        (record,) = parse_records(self.run("scontrol", "show", "job", "--oneliner", str(job)).stdout)
        return record

    def finished_jobs(self) -> list[dict[str, str]]:
        """Return the record of every job that ended; Slurm itself forgets them after some minutes (MinJobAge)."""
        return parse_records((self.directory / "log" / "finished_jobs.txt").read_text())

    def wait_for(self, job: int | str, *states: str, timeout: float = 60) -> dict[str, str]:
        """Wait until a job is in one of these states; raise at once when it ended in another."""

        def arrived() -> dict[str, str] | None:
            record = self.job(job)
            if record["JobState"] in states:
                return record
            if record["JobState"] in ENDED:
                raise RuntimeError(f"job {job} ended as {record['JobState']}, not {states}: {record}")
            return None

        return poll(arrived, timeout, f"job {job} to be {' or '.join(states)}")

    def nodes(self) -> dict[str, str]:
        """Return the state of each node, by its name."""
        records = parse_records(self.run("scontrol", "show", "node", "--oneliner").stdout)
        return {record["NodeName"]: record["State"] for record in records}

    def stop_node(self, name: str, steps: bool = True) -> None:
        """SIGKILL a node's slurmd; with `steps` also its step daemons and their tasks, as if the machine were lost."""
        if steps:
            end(self._keepers.pop(name))
        else:
            os.kill(int((self.directory / "spool" / f"{name}.pid").read_text()), signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd (again)."""
        self._keep(name, "slurmd", "-D", "-N", name)

    def _start(self) -> None:
        if missing := missing_programs():
            raise FileNotFoundError(f"not installed: {', '.join(missing)}; run tests/slurm/install.sh")
        for name in ("log", "spool", "state"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "munge.key").write_bytes(os.urandom(128))
        (self.directory / "munge.key").chmod(0o600)
        (self.directory / "slurm.conf").write_text(self._configuration())
        (self.directory / "gres.conf").write_text(GRES.format(directory=self.directory))
        for index in range(4):
            (self.directory / f"gpu{index}").touch()
        files = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munge.pid",
            "seed-file": "munge.seed",
            "log-file": "log/munged.log",
        }
        # --force: munged would refuse a directory that others may write to or a log that they may read.
        options = [f"--{option}={self.directory / file}" for option, file in files.items()]
        self._keep("munged", "munged", "--foreground", "--force", *options)
        poll(lambda: self._succeeds("munge", "-n", "-S", str(self.directory / "munge.socket")), 20, "munged")
        self._keep("slurmctld", "slurmctld", "-D")
        poll(lambda: self._succeeds("scontrol", "ping"), 20, f"slurmctld (see {self.directory}/log)")
        for name in self.names:
            self.start_node(name)
        poll(lambda: set(self.nodes().values()) == {"IDLE"}, 30, f"the nodes (see {self.directory}/log)")

    def _configuration(self) -> str:
        host = socket.gethostname().partition(".")[0]
        controller_port, *ports = free_ports(1 + len(self.names))
        nodes = [
            NODE.format(name=name, host=host, port=port, cpus=self.cpus)
            for name, port in zip(self.names, ports, strict=True)
        ]
        return CONFIG.format(
            host=host,
            controller_port=controller_port,
            user=getpass.getuser(),
            directory=self.directory,
            grace_seconds=self.grace_seconds,
            nodes="\n".join(nodes),
        )

    def _keep(self, name: str, program: str, *arguments: str) -> None:
        with (self.directory / "log" / f"{name}.out").open("ab") as log:
            keeper = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("keeper.py")), program, *arguments],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._keepers.setdefault(name, []).append(keeper)

    def _succeeds(self, *command: str) -> bool:
        return self.run(*command, check=False).returncode == 0


def end(keepers: list[subprocess.Popen[bytes]]) -> None:
    """End daemons and all that they started."""
    for keeper in keepers:
        assert keeper.stdin is not None
        keeper.stdin.close()
    for keeper in keepers:
        keeper.wait()


def parse_records(text: str) -> list[dict[str, str]]:
    """Parse what `scontrol show --oneliner` prints: one record a line, Key=Value, where values may hold spaces."""
    return [
        dict(field.split("=", 1) for field in re.split(r" +(?=[A-Za-z_/:]+=)", line) if "=" in field)
        for line in text.splitlines()
        if line
    ]


def poll(condition: Callable[[], Result | None], timeout: float, what: str) -> Result:
    """Return what a condition returns once that is true; raise TimeoutError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.2)
    return result


def free_ports(count: int) -> list[int]:
    """Return free loopback ports below the range from which the kernel gives ports to outgoing connections."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def main(directory: str, *command: str) -> int:
    """Run a command in a new cluster, or the cluster alone until Ctrl-C."""
    with SlurmCluster(Path(directory)) as cluster, contextlib.suppress(KeyboardInterrupt):
        if command:
            return subprocess.run(command, env=cluster.environment, check=False).returncode
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
