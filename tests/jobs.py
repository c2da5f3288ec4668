"""Stages as jobs of a test's SLURM cluster."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster

REPOSITORY = Path(__file__).parents[1]


@dataclass
class Jobs:
    """Stages as jobs of a cluster, with their folders and logs in `place`."""

    cluster: Cluster
    place: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the tests' own Python finds, jobs find."""
        paths = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
        paths["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if not self.cluster.isolated:  # nodes have no network of their own, nor names in it
            site = self.place / "site.sh"
            site.write_text("export MASTER_ADDR=127.0.0.1\n")
            paths["OTHERSIDE_SITE"] = str(site)
        return paths

    def stage(self, config: Path, *options: str, root: str, sbatch: tuple[str, ...] = ("--nodes=2",)) -> str:
        """Submit a stage; the job's number."""
        script = REPOSITORY / "slurm" / "stage.sbatch"
        sbatch = ("--cpus-per-task=1", *sbatch)  # as many threads as the tests have: results are compared bit for bit
        arguments = (*sbatch, f"--output={self.place}/%j.log", script, config, "--trainer.default_root_dir", root)
        return self.cluster.sbatch(*arguments, *options, cwd=self.place, **self.environment)

    def submit(self, *arguments: str) -> list[str]:
        """Run slurm/submit; the lines it printed."""
        environment = {**self.cluster.environment, **self.environment}
        command = (sys.executable, REPOSITORY / "slurm" / "submit", *arguments)
        return self.cluster.client(*command, cwd=self.place, env=environment).splitlines()

    def log(self, job: str) -> str:
        """What the job has printed."""
        path = self.place / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, job: str, pattern: str, timeout: float = 240, count: int = 1) -> None:
        """Until the job has printed so many lines with the pattern."""
        deadline = time.monotonic() + timeout
        while len(re.findall(pattern, self.log(job), re.MULTILINE)) < count:
            state = self.cluster.job(job)
            assert time.monotonic() < deadline, (
                f"job {job} ({state['JobState']}) did not say {pattern}:\n{self.log(job)}"
            )
            ended = state["JobState"] in ("FAILED", "CANCELLED", "COMPLETED")
            assert not ended, f"{state}\n{self.log(job)}\n{self.cluster.logs()}"
            time.sleep(0.1)

    def until_running(self, job: str, start: int = 0) -> None:
        """Until the job's n-th start has its ranks running: they import what they need, for seconds."""
        self.until(job, rf"^job \d+, start {start},")
        deadline = time.monotonic() + 30
        while not self.cluster.processes(job, 0):
            assert time.monotonic() < deadline, self.log(job)
            time.sleep(0.05)

    def end(self, job: str, state: str, timeout: float = 300) -> dict[str, str]:
        """The ended job, in the state that it must be in."""
        found = self.cluster.wait(job, timeout=timeout)
        assert found["JobState"] == state, f"{found}\n{self.log(job)}"
        return found
