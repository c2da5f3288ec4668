"""Runs that are asked to stop: they save at the next optimizer step, end with a status of their own, and lose nothing.

What SLURM does with them is tested in tests/slurm.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs

from lightning_modules.callbacks.requeue import Requeue, requeue, slurm_job


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("requeue")
    runs.write_data(folder, rows=40)
    return folder


def until(path: Path, pattern: str = "*", timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
def test_a_stopped_run_loses_no_step(number: signal.Signals, workers: int, place: Path, tiny_llama: Path) -> None:
    """The signal goes to every process, loader workers too, as SLURM's does."""
    name = f"{number.name}-{workers}"
    settings = {"data.init_args.num_workers": workers, "trainer.accumulate_grad_batches": 2}
    config = runs.write_stage(place, "SimCSE", tiny_llama, root=name, steps=24, **settings)
    command = runs.start("fit", "--config", config, cwd=place)
    until(place / name / "checkpoints", "step=4.ckpt")
    os.killpg(command.pid, number)
    status, output = command.wait()
    assert status == 128 + number, output
    [stopped] = (place / name / "checkpoints").glob("stopped-step=*.ckpt")
    last = max(int(step) for step in re.findall(r"^step (\d+)/", output, re.MULTILINE))
    assert stopped.name == f"stopped-step={last}.ckpt" and last < 24
    said = f"stopped by {number.name}; run the same command again to go on from {name}/checkpoints/{stopped.name}"
    assert said in output
    assert output.count("stopping at the end of this step") == (number == signal.SIGINT)
    assert not [path for path in ("encoder", "finished.json") if (place / name / path).exists()]

    output = runs.run("fit", "--config", config, cwd=place)
    assert f"resumes from {name}/checkpoints/{stopped.name}" in output
    calm = place / "calm" / "finished.json"
    if not calm.exists():
        runs.run("fit", "--config", config, "--trainer.default_root_dir", "calm", cwd=place)
    runs.assert_equal(runs.adapter(place / "calm"), runs.adapter(place / name))


def test_ctrl_c_at_one_rank_stops_all_at_the_same_step(place: Path, tiny_llama: Path) -> None:
    callbacks = [{"class_path": "pace.Pace", "init_args": {"seconds": 0.05, "skew": 0.05}}]
    config = runs.write_stage(place, "MNTP", tiny_llama, root="both", steps=200, **{"trainer.callbacks": callbacks})
    ranks = runs.start_ranks(2, "fit", "--config", config, cwd=place)
    until(place / "both" / "checkpoints", "step=2.ckpt")
    os.kill(ranks[1].pid, signal.SIGINT)
    (status, output), (other, _) = (rank.wait() for rank in ranks)
    assert (status, other) == (130, 130) and "Traceback" not in output
    assert "stopped by SIGINT; run the same command again to go on from both/checkpoints/stopped-step=" in output


def test_ctrl_c_before_training_is_one_line(place: Path, tiny_llama: Path) -> None:
    callbacks = [{"class_path": "pace.Ask", "init_args": {"batch": None, "number": int(signal.SIGINT)}}]
    config = runs.write_stage(place, "MNTP", tiny_llama, root="early", **{"trainer.callbacks": callbacks})
    status, output = runs.start("fit", "--config", config, cwd=place).wait()
    assert status == 130 and "Traceback" not in output
    assert output.splitlines()[-1] == "lightning fit was stopped by Ctrl-C; the same command begins again"
    assert not (place / "early" / "checkpoints").exists()


def test_only_the_newest_stop_stays(place: Path, tiny_llama: Path) -> None:
    config = runs.write_stage(place, "MNTP", tiny_llama, root="often", steps=400)
    for wanted in ("step=2.ckpt", "stopped-*.ckpt"):
        command = runs.start("fit", "--config", config, cwd=place)
        until(place / "often" / "checkpoints", wanted)
        os.kill(command.pid, signal.SIGUSR1)
        command.wait()
    assert len(list((place / "often" / "checkpoints").glob("stopped-*.ckpt"))) == 1


@pytest.mark.parametrize(("number", "step"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 1)])
def test_a_validation_that_is_due_comes_first_if_there_is_time(
    number: signal.Signals, step: int, place: Path, tiny_llama: Path
) -> None:
    """Behind every batch; asked before the first one. A resumed run would leave the validation out."""
    name = f"validated-{number.name}"
    settings = {"trainer.val_check_interval": 1, "data.init_args.val_sources": [{"path": str(place / "sentences.txt")}]}
    config = runs.write_stage(place, "MNTP", tiny_llama, root=name, steps=40, **settings)
    command = runs.start("fit", "--config", config, cwd=place)
    until(place / name, ".lock")
    os.kill(command.pid, number)
    status, output = command.wait()
    assert status == 128 + number and f"{name}/checkpoints/stopped-step={step}.ckpt" in output


def test_a_wrong_grace_time_is_refused_at_the_start(place: Path, tiny_llama: Path) -> None:
    config = runs.write_stage(place, "MNTP", tiny_llama, root="grace")
    command = runs.start("fit", "--config", config, cwd=place, environment={"OTHERSIDE_GRACE": "20m"})
    status, output = command.wait(60)
    assert status == 1 and output.startswith("error: OTHERSIDE_GRACE must be") and not (place / "grace").exists()


def test_a_task_of_an_array_is_requeued_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "70")
    assert slurm_job() == "70"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm_job() == "70_3"


def test_a_refused_requeue_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "scontrol" in requeue("7")


def test_a_requeue_that_is_not_answered_says_what_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: str) -> str:
        raise subprocess.TimeoutExpired("scontrol", 60, stderr=b"Unable to contact slurm controller")

    monkeypatch.setattr("lightning_modules.callbacks.requeue.scontrol", late)
    assert requeue("7") == "Unable to contact slurm controller"


def leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, trained: bool, restarts: str = "1") -> int:
    """The exit status of a job that SIGUSR1 asks to stop, where `scontrol` is this script."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n{script}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr("lightning_modules.callbacks.requeue.PAUSE", 0.01)
    alone = SimpleNamespace(broadcast=lambda value: value, barrier=lambda: None)
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=alone)
    callback = Requeue()
    callback._trained = trained
    with pytest.raises(SystemExit) as end:
        callback._leave(trainer, signal.SIGUSR1, "")
    return int(str(end.value.code))


@pytest.mark.parametrize(("failures", "said"), [(2, "7 is back in the queue"), (3, "(away); submit it again to go on")])
def test_a_requeue_that_fails_is_tried_three_times(
    failures: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f"[ $(wc -l < {tmp_path}/asked) -gt {failures} ] || {{ echo away >&2; exit 1; }}"
    assert leave(monkeypatch, tmp_path, script, trained=True) == 138
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:3] == ["job 7 could not be requeued (away); once more in 0 s"] * 2 and lines[3].endswith(said)


@pytest.mark.parametrize(("trained", "restarts", "status"), [(False, "0", 138), (False, "1", 125), (True, "1", 138)])
def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(
    trained: bool, restarts: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert leave(monkeypatch, tmp_path, "", trained, restarts) == status
    assert (tmp_path / "asked").exists() == (status == 138)
