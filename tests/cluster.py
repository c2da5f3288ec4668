"""A real SLURM cluster of several nodes on this machine: munged, slurmctld, and a slurmd for each node.

As root, where the kernel allows it, every node has its own network, processes and host name: it can be killed whole, or
its cable pulled. Elsewhere all daemons share the machine's network, and nodes differ by port. No systemd, cgroups or
database; nothing is written outside the cluster's folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ranks import free_port

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare")
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
HEAD = "10.77.0.254"

CONF = """
ClusterName=test
SlurmctldHost={head}
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=20
ReturnToService=2
SlurmdTimeout=10
UnkillableStepTimeout=15
MinJobAge=3600
FirstJobId={first_job}
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10
"""


class SlurmError(AssertionError):
    """A daemon, a command or a job did not do what was asked."""


class Cluster:
    """A context manager; the cluster lives inside it.

    Args:
        nodes: how many, each with eight CPUs and two GPUs by what SLURM is told.
    """

    def __init__(self, nodes: int = 3) -> None:
        self.names = [f"node{i + 1}" for i in range(nodes)]
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path; not private, or munged refuses
        self.root.chmod(0o755)
        self.space = f"{self.root.name}-"
        self.isolated = _allowed("ip", "netns", "add", f"{self.space}head")
        self.unshare = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.contained = self.isolated or _allowed(*self.unshare, "true")
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "OTHERSIDE_"))}
        self.environment = {**clean, "SLURM_CONF": str(self.root / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            (self.root / "state").mkdir()
            key = self.root / "munge.key"
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)
            files = (
                ("key-file", "key"),
                ("socket", "sock"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
            self._start("munged", ["munged", "-F", *(f"--{option}={self.root}/munge.{end}" for option, end in files)])
            self._until((self.root / "munge.sock").exists, "munged")
            self._start("slurmctld", [*self._inside("head"), *self._named("head", "exec slurmctld -D")])
            self._until(lambda: " UP" in self.client("scontrol", "ping", check=False), "slurmctld")
            for name in self.names:
                self.start_node(name)
            self._until(lambda: set(self.states().values()) == {"idle"}, "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.empty()
        for name in sorted(self.daemons, key=lambda name: not name.startswith("node")):
            self._end(name)
        if self.isolated:
            for name in ("head", *self.names):
                subprocess.run(["ip", "netns", "delete", self.space + name], capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def _configure(self) -> None:
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        machine = socket.gethostname().split(".")[0]
        ports = [free_port() for _ in range(len(self.names) + 1)]
        if self.isolated:
            self._lay_network()
            head, port = f"head({HEAD})", 6817
            nodes = [f"NodeName={name} NodeAddr=10.77.0.{i}" for i, name in enumerate(self.names, 1)]
        else:
            head, port = f"{machine}(127.0.0.1)", ports.pop()
            nodes = [
                f"NodeName={name} NodeHostname={machine} NodeAddr=127.0.0.1 Port={port}"
                for name, port in zip(self.names, ports, strict=True)
            ]
        lines = "\n".join(f"{node} CPUs=8 Gres=gpu:2 RealMemory=1000" for node in nodes)
        first_job = 1000 + int.from_bytes(os.urandom(2), "big") % 8000  # so that ports made of it differ between runs
        values = {"head": head, "port": port, "user": user, "root": self.root, "nodes": lines, "first_job": first_job}
        (self.root / "slurm.conf").write_text(CONF.format(**values))
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        gpus = ("/dev/null", "/dev/zero")  # any devices: SLURM only counts and names them
        (self.root / "gres.conf").write_text("".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
        addresses = [f"10.77.0.{i} {name}\n" for i, name in enumerate(self.names, 1)]
        (self.root / "hosts").write_text("".join(["127.0.0.1 localhost\n", f"{HEAD} head\n", *addresses]))

    def _lay_network(self) -> None:
        """A bridge in the head's network, and a cable from it to each node."""
        head = f"{self.space}head"
        for command in ("link set lo up", "link add br0 type bridge", f"addr add {HEAD}/24 dev br0", "link set br0 up"):
            _ip("-n", head, *command.split())
        for i, name in enumerate(self.names, 1):
            space = self.space + name
            _ip("netns", "add", space)
            _ip("-n", head, *f"link add {name} type veth peer name eth0 netns {space}".split())
            _ip("-n", head, *f"link set {name} master br0 up".split())
            for command in ("link set lo up", f"addr add 10.77.0.{i}/24 dev eth0", "link set eth0 up"):
                _ip("-n", space, *command.split())

    def _inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.space + name] if self.isolated else []

    def _named(self, name: str, command: str) -> list[str]:
        """A shell command on a machine of that name."""
        if not self.isolated:
            return ["sh", "-c", command]
        hosts = f"hostname {name} && mount --bind {self.root}/hosts /etc/hosts"
        return ["unshare", "--uts", "--mount", "sh", "-c", f"{hosts} && {command}"]

    def _start(self, name: str, command: list[str]) -> None:
        with (self.root / f"{name}.out").open("ab") as log:
            # should the tests be killed, the daemons and nodes end, too
            command = ["setpriv", "--pdeathsig", "KILL", *command]
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()

    def _until(self, ready: Callable[[], bool], what: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                raise SlurmError(f"no {what} after {timeout} s\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of what each daemon has said."""
        return "\n".join(f"{p.name}:\n{p.read_text(errors='replace')[-1500:]}" for p in sorted(self.root.glob("*.log")))

    def client(self, *command: str | Path, check: bool = True, **options: Any) -> str:
        """What a command like `squeue` prints."""
        options = {"env": self.environment, "capture_output": True, "text": True, "timeout": 60, **options}
        ended = subprocess.run([*self._inside("head"), *map(str, command)], stdin=subprocess.DEVNULL, **options)
        if check and ended.returncode:
            raise SlurmError(f"{shlex.join(map(str, command))} ended with {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout

    # nodes

    def start_node(self, name: str) -> None:
        """A node whose first process is a shell that outlives its slurmd; killing that one ends the whole node."""
        (self.root / f"spool-{name}").mkdir(exist_ok=True)
        shell = self._named(name, f"slurmd -D -N {name} & while :; do wait; sleep 1; done")
        self._start(name, [*self._inside(name), *(self.unshare if self.contained else []), *shell])

    def kill_node(self, name: str, silently: bool = False) -> None:
        """End all processes of a node at once; `silently`, as a power cut does: nobody is told."""
        if silently:
            _ip("-n", f"{self.space}head", "link", "set", name, "down")
        self._end(name)

    def lose_node(self, name: str) -> None:
        """A node dies, and whoever watches the cluster says so; SLURM itself would take `SlurmdTimeout` to notice."""
        self.kill_node(name, silently=self.isolated)
        self.client("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=died")

    def restore(self) -> None:
        """An empty queue, and all nodes back."""
        self.empty()
        lost = set(self.names) - set(self.daemons)
        for name in lost:
            if self.isolated:
                _ip("-n", f"{self.space}head", "link", "set", name, "up")
            self.start_node(name)
        if lost and self.isolated:  # others hold it for unreachable, and would for seconds
            for name in ("head", *self.names):
                _ip("-n", self.space + name, "neigh", "flush", "all")
        self.client("scontrol", "update", f"NodeName={','.join(self.names)}", "State=RESUME", check=False)
        self._until(lambda: set(self.states().values()) == {"idle"}, "idle nodes", 60)
        # slurmctld may say so before a node's slurmd takes a step
        count = len(self.names)
        step = ("srun", f"--nodes={count}", "hostname")
        self._until(lambda: len(self.client(*step, check=False).split()) == count, "nodes that run a step", 60)

    def states(self) -> dict[str, str]:
        """Each node's state."""
        return dict(line.split() for line in self.client("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T").splitlines())

    # jobs

    def sbatch(self, *arguments: str | Path, cwd: Path, **environment: str) -> str:
        """Submit a job; its number."""
        return (
            self.client("sbatch", "--parsable", *arguments, cwd=cwd, env={**self.environment, **environment})
            .split(";")[0]
            .strip()
        )

    def job(self, number: str) -> dict[str, str]:
        """All that SLURM knows of a job."""
        line = self.client("scontrol", "-o", "show", "job", number).splitlines()[0]
        return dict(re.findall(r"(?:^|\s)([A-Za-z_/:]+)=(\S*)", line))

    def wait(self, number: str, *states: str, timeout: float = 120) -> dict[str, str]:
        """The job as it is when it first is in one of these states, or has ended."""
        deadline = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in (states or ENDS):
            if time.monotonic() > deadline:
                raise SlurmError(f"job {number} is {job['JobState']} ({job['Reason']}) after {timeout} s")
            time.sleep(0.2)
        return job

    def processes(self, number: str, rank: int) -> list[int]:
        """The processes of a job's rank: the trainer first."""
        conf = f"SLURM_CONF={self.root}/slurm.conf"
        names = (conf, f"SLURM_JOB_ID={number}", "SLURM_STEP_ID=0", f"SLURM_PROCID={rank}")
        wanted = {name.encode() for name in names}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if wanted <= set(environment):
                    found.append(int(folder.name))
        return sorted(found, key=lambda process: Path(f"/proc/{process}/stat").stat().st_mtime_ns)

    def empty(self) -> None:
        """End all jobs."""
        if jobs := set(self.client("squeue", "-h", "-o", "%A").split()):
            self.client("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.client("scancel", *jobs, check=False)
            self._until(lambda: not self.client("squeue", "-h", "-o", "%A").split(), "empty queue", 60)


def missing() -> list[str]:
    """What has to be installed first."""
    return [command for command in NEEDED if not shutil.which(command)]


def _allowed(*command: str) -> bool:
    return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True).returncode


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
