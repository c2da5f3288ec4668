"""Learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class Schedule:
    """Warm-up, then a way down.

    Args:
        name: `linear` or `cosine` fall to `end` at the last step; `constant` stays.
        warmup_steps: optimizer steps over which the rate rises linearly; none of them has rate 0.
        total_steps: when the fall ends. None: at the end of the run.
        end: last rate, as a share of the highest.
    """

    name: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    total_steps: int | None = None
    end: float = 0.0

    def build(self, optimizer: Optimizer, run_steps: int) -> LambdaLR:
        """The scheduler, stepped once per optimizer step."""
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(
                "model.schedule.total_steps must be at least 1, or null for the steps of the run; got "
                f"{self.total_steps}."
            )
        total = self.total_steps or run_steps
        if self.warmup_steps < 0 or (self.name != "constant" and self.warmup_steps >= total):
            raise ValueError(
                f"model.schedule.warmup_steps must be less than the run's {total} steps; got {self.warmup_steps}. "
                "Lower --model.schedule.warmup_steps or, for a trial run that stops early, set "
                "--model.schedule.total_steps to the steps of the whole run."
            )

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            done = min((step - self.warmup_steps) / max(total - self.warmup_steps, 1), 1.0)
            fall = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.name]
            return self.end + (1 - self.end) * fall

        return LambdaLR(optimizer, factor)

    def idle(self, run_steps: int) -> str:
        """What to say where a run goes on behind the step at which its rate is 0; else empty."""
        total = self.total_steps or run_steps
        if total >= run_steps or self.name == "constant" or self.end:
            return ""
        return (
            f"behind step {total} the learning rate is 0: the run has {run_steps} steps, and "
            f"model.schedule.total_steps is {total}. Set --model.schedule.total_steps {run_steps}."
        )


def set_rates(scheduler: LambdaLR, rates: list[float]) -> None:
    """Highest rates, one per group of parameters, in force at once: a checkpoint brings back those it was written with,
    and the last one that they led to.
    """
    scheduler.base_lrs = list(rates)
    for group, rate, factor in zip(scheduler.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
