"""Stops a run that is asked to, without losing a step; under SLURM, puts its job back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from lightning_modules import signals
from lightning_modules.callbacks.monitors import validates
from otherside import distributed

STUCK = 125  # exit status, next to that of EncoderFolder: once more would come to the same
TRIES, PAUSE = 3, 5.0  # seconds; of `scontrol requeue`, as a controller may be away for a moment


class Requeue(Checkpoint):  # Lightning puts those behind all other callbacks, which may have work at this step
    """At the end of an optimizer step the ranks agree whether one of them was asked to stop; then all save and leave.
    Where there are several, at the end of the next step: what they agree on arrives while they train. An evaluation
    that a signal ended has told all ranks: they leave at its step, also at the last one, and make it anew when the run
    goes on. A validation that is due comes first where there is time (SIGUSR1), as a run that goes on leaves it out.

    - SIGUSR1, which SLURM sends ahead of the time limit (`sbatch --signal=USR1@180`): rank 0 requeues the job. Not one
      that was requeued and trained no step since: it would be for ever. The exit status is 125 then.
    - SIGTERM, from preemption or `scancel`: SLURM itself decides what becomes of the job, and only requeues one that
      still runs when its grace time ends. So the ranks stay until the job is ending, at most `OTHERSIDE_GRACE` seconds.
    - SIGINT, which is Ctrl-C: they leave.

    Outside SLURM all just save and leave. The exit status is 128 + signal: only a finished training ends with 0.
    """

    def __init__(self) -> None:
        self._step, self._largest = 0, distributed.Largest()
        self._trained = False  # a step, in this start
        self._postponed: signal.Signals | None = None  # until a validation has ended

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Lightning's own handler runs a collective inside the signal, on which ranks that are not in step hang
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # Nor its question to all ranks, behind which the host waits for the device at every batch
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step, self._largest = trainer.global_step, distributed.Largest()
        signals.note_interrupt(True)
        self._leave_evaluation(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signals.note_interrupt(False)
        self._leave_evaluation(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave_evaluation(trainer)  # alone where a run is resumed behind its last step

    def _leave_evaluation(self, trainer: pl.Trainer) -> None:
        if number := signals.agreed():  # nothing was trained since the checkpoint, if there is one
            self._leave(trainer, signal.Signals(number), "")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated, and no checkpoint holds them
        self._step, self._trained = trainer.global_step, True
        if not (number := signals.agreed() or self._largest(signals.asked(), trainer.strategy.root_device)):
            return
        if validates(trainer) and number == signal.SIGUSR1:
            self._postponed = signal.Signals(number)
        else:
            self._stop(trainer, signal.Signals(number))

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._postponed:
            self._stop(trainer, self._postponed)

    def _stop(self, trainer: pl.Trainer, number: signal.Signals) -> None:
        path = Path(trainer.default_root_dir) / "checkpoints" / f"stopped-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for older in set(path.parent.glob("stopped-*.ckpt")) - {path}:
                trainer.strategy.remove_checkpoint(older)
        self._leave(trainer, number, f" from {path}")

    def _leave(self, trainer: pl.Trainer, number: signal.Signals, where: str) -> None:
        distributed.say(f"stopped by {number.name}; run the same command again to go on{where}")
        status = 128 + number
        if (job := slurm_job()) and number == signal.SIGTERM:
            self._await_end(trainer, job)
        elif job and number == signal.SIGUSR1:
            status = self._back(trainer, job, status)
        trainer.strategy.barrier()  # a rank that leaves early makes `srun --kill-on-bad-exit` end the others
        sys.exit(status)

    def _back(self, trainer: pl.Trainer, job: str, status: int) -> int:
        """Put the job back into the queue, if that leads anywhere; the exit status."""
        if not self._trained and int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            distributed.say(
                f"job {job} must train a step to be requeued once more; it trained none since it was, and this would "
                "go on for ever. Submit it again with a longer --time, or evaluate less (mteb.tasks, mteb.time_budget)",
            )
            return STUCK
        for tries_left in reversed(range(TRIES)):
            # each a collective of its own: all tries together may take longer than ranks wait
            why = trainer.strategy.broadcast(requeue(job) if trainer.is_global_zero else "")
            if not why:
                distributed.say(f"job {job} is back in the queue")
                break
            remedy = f"once more in {PAUSE:.0f} s" if tries_left else "submit it again to go on"
            distributed.say(f"job {job} could not be requeued ({why}); {remedy}")
            time.sleep(PAUSE if tries_left else 0)
        return status

    def _await_end(self, trainer: pl.Trainer, job: str) -> None:
        distributed.say("waiting for SLURM to end the job")
        deadline = time.monotonic() + signals.grace()
        while not trainer.strategy.broadcast(
            trainer.is_global_zero and (is_ending(job) or time.monotonic() > deadline)
        ):
            time.sleep(2)  # between collectives: a long grace time is no timeout


def slurm_job() -> str | None:
    """This job as `scontrol` knows it: a task of an array by its own name, as the array's number means all of them."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Put a running job back into the queue; why it could not be, else empty."""
    try:
        scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        return " ".join(os.fsdecode(why).split()) or str(error)  # bytes where it was not answered in time
    return ""


def is_ending(job: str) -> bool:
    """Whether SLURM has begun to end a job; False, too, if it cannot be asked."""
    try:
        return "JobState=RUNNING" not in scontrol("-o", "show", "job", job)
    except (OSError, subprocess.SubprocessError):
        return False


def scontrol(*arguments: str) -> str:
    """What `scontrol` prints."""
    command = ["scontrol", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
