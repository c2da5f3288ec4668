"""Learning-rate schedules against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.schedules import Schedule


def rates(schedule: Schedule, run_steps: int) -> list[float]:
    """The rate of each step of a run, as a share of the highest."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule.build(optimizer, run_steps)
    found = []
    for _ in range(run_steps):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (Schedule(), 4, [1, 0.75, 0.5, 0.25]),
        (Schedule("constant"), 3, [1, 1, 1]),
        (Schedule("cosine"), 4, [1, 0.853553, 0.5, 0.146447]),
        (Schedule(warmup_steps=3), 5, [0.25, 0.5, 0.75, 1, 0.5]),
        (Schedule(end=0.2), 4, [1, 0.8, 0.6, 0.4]),
        (Schedule("constant", warmup_steps=1), 3, [0.5, 1, 1]),
        (Schedule(total_steps=2, end=0.1), 4, [1, 0.55, 0.1, 0.1]),  # the run goes on at the last rate
    ],
)
def test_rates(schedule: Schedule, steps: int, expected: list[float]) -> None:
    assert rates(schedule, steps) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("warmup_steps", [-1, 4, 5])
def test_warmup_must_end_inside_the_run(warmup_steps: int) -> None:
    said = rf"warmup_steps must be less than the run's 4 steps; got {warmup_steps}\. .*--model.schedule.total_steps"
    with pytest.raises(ValueError, match=said):
        rates(Schedule(warmup_steps=warmup_steps), 4)


def test_a_constant_rate_may_warm_up_through_the_whole_run() -> None:
    assert rates(Schedule("constant", warmup_steps=3), 3) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(total_steps=18), True),
        (Schedule("cosine", total_steps=18), True),
        (Schedule(total_steps=30), False),
        (Schedule(), False),
        (Schedule("constant", total_steps=18), False),
        (Schedule(total_steps=18, end=0.1), False),
    ],
)
def test_a_run_longer_than_its_schedule_is_told(schedule: Schedule, said: bool) -> None:
    found = schedule.idle(30)
    assert found.startswith("behind step 18 the learning rate is 0: the run has 30 steps") == said == bool(found)
