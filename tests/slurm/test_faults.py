"""What becomes of a job when something happens to it: it goes on or has failed, and no step is lost.

Jobs are real trainings of a tiny Llama on two nodes. Each start costs the seconds of Python's imports, so a job meets
several faults. Random moments and more faults: benchmarks/slurm_faults.py.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs
from jobs import Jobs

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster for all

PACE = [{"class_path": "pace.Pace", "init_args": {"seconds": 0.1, "skew": 0.1}}]
DDP = {"class_path": "lightning_modules.strategies.DDP", "init_args": {"timeout": 30}}
STEPS = 40


def write(place: Path, llama: Path, **settings: Any) -> Path:
    """A stage with skewed ranks, loader workers and a validation now and then."""
    disturbing = {
        "trainer.callbacks": PACE,
        "trainer.strategy": DDP,
        "trainer.val_check_interval": 2,
        "data.init_args.num_workers": 1,
        "data.init_args.val_sources": [{"path": str(place / "sentences.txt")}],
    }
    return runs.write_stage(place, "SimCSE", llama, steps=STEPS, **{**disturbing, **settings})


def undisturbed(place: Path, config: Path) -> None:
    """The same training on two ranks, without SLURM."""
    options = ("--trainer.callbacks", "[]", "--trainer.default_root_dir", "undisturbed")
    runs.run_ranks(2, "fit", "--config", config, *options, cwd=place, timeout=200)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_slurm_moves_loses_nothing(jobs: Jobs, tiny_llama: Path) -> None:
    """Asked to stop while it imports, then one of its nodes loses its power: a third takes over."""
    config = write(jobs.place, tiny_llama)
    job = jobs.stage(config, root="moved")
    jobs.until_running(job)
    jobs.cluster.client("scancel", "--signal=USR1", job)
    jobs.until(job, "start 1,")
    jobs.until(job, "^step 1[0-9]/")
    jobs.cluster.lose_node(jobs.cluster.job(job)["BatchHost"])
    assert jobs.end(job, "COMPLETED")["Restarts"] == "2"
    assert "stopped by SIGUSR1; run the same command again to go on from moved/checkpoints/stopped-" in jobs.log(job)
    begun = [int(step) for step in re.findall(r"resumes from moved/\S*step=(\d+).ckpt$", jobs.log(job), re.MULTILINE)]
    assert len(begun) == 2 and begun[0] < begun[1], jobs.log(job)
    undisturbed(jobs.place, config)
    runs.assert_equal(runs.adapter(jobs.place / "undisturbed"), runs.adapter(jobs.place / "moved"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_fails_the_job(fault: signal.Signals, jobs: Jobs, tiny_llama: Path) -> None:
    config = write(jobs.place, tiny_llama)
    job = jobs.stage(config, root=fault.name)
    jobs.until(job, "^step 4/")
    os.kill(jobs.cluster.processes(job, 1)[0], fault)
    begun = time.monotonic()
    jobs.end(job, "FAILED")
    assert time.monotonic() - begun < 60
    assert not (jobs.place / fault.name / "finished.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cancelled_job_saves_first_and_takes_along_what_waits_for_it(jobs: Jobs, tiny_llama: Path) -> None:
    config = write(jobs.place, tiny_llama)
    job = jobs.stage(config, root="cancelled", sbatch=("--nodes=1",))
    waiting = jobs.stage(config, root="never", sbatch=(f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes"))
    jobs.until(job, "^step 3/")
    jobs.cluster.client("scancel", job)
    jobs.end(job, "CANCELLED")
    assert re.search(r"stopped by SIGTERM; .* cancelled/checkpoints/stopped-step=\d+.ckpt", jobs.log(job))
    jobs.end(waiting, "CANCELLED", timeout=15)
