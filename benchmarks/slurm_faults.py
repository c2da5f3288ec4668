"""Faults of jobs on a real SLURM cluster on this machine: what becomes of them, what is lost, are the weights equal.

python benchmarks/slurm_faults.py [FAULT...]    (root; Debian's slurmctld slurmd slurm-client munge iproute2)

Every job trains a tiny Llama on two nodes (three in `elastic`) with skewed ranks, a loader worker per rank, a
checkpoint every second step and a validation every second batch. What ends without being finished is submitted again.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import runs
import torch
from cluster import Cluster
from conftest import build_tiny_llama
from recipe_steps import Jobs

STEPS = 40
PACE = [{"class_path": "pace.Pace", "init_args": {"seconds": 0.15, "skew": 0.1}}]
DDP = {"class_path": "lightning_modules.strategies.DDP", "init_args": {"timeout": 30}}
LONG = [{"class_path": "pace.Pace", "init_args": {"seconds": 0.7}}]
CHANCE = random.Random(0)


def usr1(jobs: Jobs, job: str) -> str:
    """SIGUSR1 in ten starts: four in imports and set-up, two in saves, two in evaluations, two anywhere."""
    moments = ["import"] * 4 + ["save", "save", "evaluation", "evaluation", "anywhere", "anywhere"]
    CHANCE.shuffle(moments)
    for start, moment in enumerate(moments):
        jobs.until_running(job, start)
        if moment == "import":
            time.sleep(CHANCE.uniform(0, 8))
        else:
            jobs.until(job, r"^step \d+/", count=len(re.findall(r"^step \d+/", jobs.log(job), re.MULTILINE)) + 1)
        if moment == "anywhere":
            time.sleep(CHANCE.uniform(0, 1))
        if moment == "evaluation":
            jobs.until(job, r"^step \d*[13579]/", count=len(re.findall(r"^step \d*[13579]/", jobs.log(job), re.M)) + 1)
            jobs.until(job, r"^step \d*[02468]/", count=len(re.findall(r"^step \d*[02468]/", jobs.log(job), re.M)) + 1)
            time.sleep(0.2)
        if moment == "save":  # too short for scancel
            checkpoints = jobs.place / "usr1" / "checkpoints"
            while not list(checkpoints.glob(".step=*.tmp")):
                time.sleep(0.001)
            for process in {p for rank in (0, 1) for p in jobs.cluster.processes(job, rank)}:
                os.kill(process, signal.SIGUSR1)
        else:
            jobs.cluster.client("scancel", "--signal=USR1", job)
        jobs.until(job, rf"start {start + 1},")
    return ", ".join(moments)


def preempted(jobs: Jobs, job: str) -> str:
    """A job of a higher partition takes all nodes."""
    jobs.until(job, "^step 1[0-9]/")
    high = jobs.cluster.sbatch("-p", "high", "-N3", "--exclusive", "--wrap", "sleep 1", cwd=jobs.place)
    jobs.cluster.wait(high)
    return ""


def down(jobs: Jobs, job: str) -> str:
    """`scontrol update State=DOWN` of the first node, which is well."""
    jobs.until(job, "^step 1[0-9]/")
    node = jobs.cluster.job(job)["BatchHost"]
    jobs.cluster.client("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    return ""


def killed_node(jobs: Jobs, job: str) -> str:
    """Power cut of the first node; nobody tells SLURM."""
    jobs.until(job, "^step 1[0-9]/")
    jobs.cluster.kill_node(jobs.cluster.job(job)["BatchHost"], silently=jobs.cluster.isolated)
    return ""


def elastic(jobs: Jobs, job: str) -> str:
    """Power cut of one of three nodes; while the job waits for another, it is told to take two."""
    jobs.until(job, "^step 1[0-9]/")
    jobs.cluster.lose_node("node3")
    jobs.cluster.wait(job, "PENDING")
    time.sleep(10)  # SLURM refuses while it still cleans up
    jobs.cluster.client("scontrol", "update", f"JobId={job}", "NumNodes=2", "NumTasks=2")
    return ""


def rank_killed(jobs: Jobs, job: str) -> str:
    """`kill -9` of rank 1."""
    jobs.until(job, "^step 1[0-9]/")
    os.kill(jobs.cluster.processes(job, 1)[0], signal.SIGKILL)
    return ""


def rank_stopped(jobs: Jobs, job: str) -> str:
    """`kill -STOP` of rank 1; the process group's timeout is 30 s."""
    jobs.until(job, "^step 1[0-9]/")
    os.kill(jobs.cluster.processes(job, 1)[0], signal.SIGSTOP)
    return ""


def cancelled(jobs: Jobs, job: str) -> str:
    """`scancel`."""
    jobs.until(job, "^step 1[0-9]/")
    jobs.cluster.client("scancel", job)
    return ""


def time_limit(jobs: Jobs, job: str) -> str:
    """A real limit of three minutes, SIGUSR1 a minute ahead."""
    return ""


def over_limit(jobs: Jobs, job: str) -> str:
    """A real limit of one minute without a signal ahead: SIGTERM, and TIMEOUT."""
    return ""


def refused(jobs: Jobs, job: str) -> str:
    """SIGUSR1 in a job that was submitted with --no-requeue."""
    jobs.until(job, "^step 1[0-9]/")
    jobs.cluster.client("scancel", "--signal=USR1", job)
    return ""


SBATCH = {
    "time_limit": ("--nodes=2", "--time=3", "--signal=USR1@60"),
    "over_limit": ("--nodes=2", "--time=1", "--signal=URG@10"),
    "refused": ("--nodes=2", "--no-requeue"),
    "elastic": ("--nodes=3",),
}
FAULTS: dict[str, Callable[[Jobs, str], str]] = {
    f.__name__: f
    for f in (
        usr1,
        preempted,
        down,
        killed_node,
        elastic,
        rank_killed,
        rank_stopped,
        cancelled,
        time_limit,
        over_limit,
        refused,
    )
}


class Watch(threading.Thread):
    """Notes a job's states over time."""

    def __init__(self, jobs: Jobs, job: str) -> None:
        super().__init__(daemon=True)
        self.jobs, self.job, self.states, self.on = jobs, job, [], True
        self.begun = time.monotonic()
        self.start()

    def run(self) -> None:
        """Until `on` is False."""
        while self.on:
            self._note(self.jobs.cluster.job(self.job)["JobState"])
            time.sleep(0.3)

    def end(self, state: str) -> None:
        """The last state."""
        self.on = False
        self.join()
        self._note(state)

    def _note(self, state: str) -> None:
        if not self.states or self.states[-1][1] != state:
            self.states.append((round(time.monotonic() - self.begun), state))

    def __str__(self) -> str:
        return " ".join(f"{state}@{second}s" for second, state in self.states)


def lost(log: str) -> list[int]:
    """For each resume, the steps that were trained and are trained again."""
    found, last = [], 0
    for line in log.splitlines():
        if step := re.match(r"step (\d+)/", line):
            last = int(step[1])
        elif resumed := re.search(r"resumes from \S*step=(\d+).ckpt$", line):
            found.append(max(0, last - int(resumed[1])))  # the last line may not have come through
    return found


def write(place: Path, llama: Path, fault: str) -> tuple[Path, int]:
    """The stage's YAML and its number of ranks."""
    settings = {
        "trainer.callbacks": PACE if "limit" not in fault else LONG,
        "trainer.strategy": DDP,
        "trainer.val_check_interval": 2,
        "data.init_args.num_workers": 1,
        "data.init_args.val_sources": [{"path": str(place / "pairs.jsonl")}],
    }
    if fault == "elastic":  # dropout is drawn by rank; without it the number of ranks does not matter
        settings["model.init_args.lora.dropout"] = 0.0
        return runs.write_stage(place, "Supervised", llama, steps=STEPS, **settings), 3
    settings["model.init_args.lora.dropout"] = 0.3
    return runs.write_stage(place, "Supervised", llama, steps=STEPS, **settings), 2


def undisturbed(config: Path, ranks: int, root: Path) -> None:
    """The same training without SLURM."""
    options = ("--trainer.callbacks", "[]", "--trainer.default_root_dir", root)
    runs.run_ranks(ranks, "fit", "--config", config, *options, cwd=root.parent, timeout=300)


def measure(cluster: Cluster, place: Path, fault: str) -> str:
    """One row of the report."""
    jobs = Jobs(cluster, place)
    config, ranks = write(place, place / "llama", fault)
    options = SBATCH.get(fault, ("--nodes=2",))
    job = jobs.stage(config, root=fault, sbatch=options)
    watch = Watch(jobs, job)
    said = FAULTS[fault](jobs, job)
    ended = cluster.wait(job, timeout=400)["JobState"]
    watch.end(ended)
    timeline, log = str(watch), jobs.log(job)
    if not (place / fault / "finished.json").exists():
        cluster.restore()
        again = jobs.stage(config, root=fault)
        timeline += f"; again: {cluster.wait(again, timeout=300)['JobState']}"
        log += jobs.log(again)
    (place / f"{fault}.log").write_text(log)
    undisturbed(config, ranks, place / f"{fault}-undisturbed")
    one, other = runs.adapter(place / fault), runs.adapter(place / f"{fault}-undisturbed")
    equal = all(torch.equal(one[name], other[name]) for name in one)
    difference = max(((one[n] - other[n]).abs().max() / other[n].abs().max()).item() for n in one)
    cluster.restore()
    again = lost(log)
    return f"| {fault} | {timeline} | {again} | {'bit for bit' if equal else f'{difference:.1e} relative'} | {said} |"


def run(faults: list[str]) -> None:
    """Print the table."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    runs.write_data(place, rows=40)
    build_tiny_llama(place / "llama")
    print(f"logs: {place}\n| fault | job's states | steps trained again, by resume | weights | moments |")
    print("|---|---|---|---|---|")
    with Cluster() as cluster:
        for fault in faults:
            try:
                print(measure(cluster, place, fault), flush=True)
            except AssertionError as error:
                print(f"| {fault} | FAILED TO RUN: {str(error)[-3000:]}", flush=True)
                cluster.restore()


if __name__ == "__main__":
    run(sys.argv[1:] or list(FAULTS))
