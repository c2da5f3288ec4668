"""Settings of a recipe's stages: those of the shipped recipes, fitted to data, base and machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from lightning_modules.hardware import Hardware
from lightning_modules.sizing.command import as_trained, fitting, verdict
from lightning_modules.sizing.job import STAGES, Job, Stage
from lightning_modules.sizing.shape import Adapter, Shape
from lightning_modules.sizing.speed import step_time

Kind = Literal["pairs", "labels", "texts"]
NAMES = {stage: name for name, stage in STAGES.items()}
ROWS: dict[Stage, int] = {"mntp": 32, "simcse": 128, "supervised": 256}  # of a batch on GPUs; on CPUs 32
EPOCHS: dict[Stage, int] = {"mntp": 1, "simcse": 1, "supervised": 3}
FEWEST, MOST = 10, 1000  # steps; the published runs stop at 1,000, which need not be all of somebody's pairs
LARGE = 1_000_000_000  # weights, from which on rates are as far as possible the published ones
REACH = 0.02  # rate times steps of a small base's short run; twice as much loses retrieval (docs/results.md)
RATES: dict[Stage, tuple[float, float, float]] = {  # highest, as in configs/quickstart; lowest, evening; published
    "mntp": (1e-3, 5e-4, 5e-5),
    "simcse": (2e-3, 3e-4, 3e-5),
    "supervised": (5e-4, 3e-4, 2e-4),
}


@dataclass(frozen=True)
class Data:
    """What there is to train on.

    Args:
        kind: what its rows are: pairs, texts with labels, or texts.
        rows: of training, by stage; stages without any are left out.
        length: tokens of most of its texts.
        negatives: hard negatives of a pair.
        held_out: whether there are some to validate on.
        mean: tokens of a text, on average.
        mining: seconds that finding hard negatives by the stage simcse takes; 0: none are mined.
    """

    kind: Kind
    rows: dict[Stage, int]
    length: int
    negatives: int
    held_out: bool
    mean: int
    mining: float = 0.0


@dataclass(frozen=True)
class Planned:
    """A stage that fits the machine.

    Args:
        job: its size.
        steps: of training.
        seconds: of a step, as estimated.
        rate: of learning, at its highest.
        trainer: name of its preset in configs/trainer/.
        passes: how often it reads each row.
        whole: whether there is time for all the steps that its rows are good for.
    """

    job: Job
    steps: int
    seconds: float
    rate: float
    trainer: str
    passes: float
    whole: bool


def plan(shape: Shape, data: Data, hardware: Hardware, hours: float) -> list[Planned]:
    """The stages that the data allow.

    Args:
        shape: of the base.
        data: to train on.
        hardware: to train on.
        hours: of all stages and mining together, as estimated; see `shares`.

    Raises:
        ValueError: there are too few rows, or a stage does not fit the machine in any way.
    """
    fitted = {stage: _fitted(stage, shape, data, hardware) for stage in data.rows}
    each = {stage: _seconds(job, data, hardware) for stage, job in fitted.items()}
    enough = {stage: _enough(stage, data.rows[stage] / job.global_batch) for stage, job in fitted.items()}
    share = shares({stage: enough[stage] * each[stage] for stage in fitted}, hours * 3600 - data.mining)
    found = []
    for stage, job in fitted.items():
        steps = max(FEWEST, min(enough[stage], int(share[stage] / each[stage] + 1e-6)))
        trainer = "cpu" if not hardware.gpus else "one-gpu" if hardware.ranks == 1 else job.strategy
        passes = steps * job.global_batch / data.rows[stage]
        found.append(
            Planned(job, steps, each[stage], _rate(stage, shape, steps), trainer, passes, steps >= enough[stage])
        )
    return found


def forward_time(shape: Shape, tokens: float, hardware: Hardware) -> float:
    """Seconds in which so many tokens go through the model once, on all ranks together."""
    machine = hardware.machine
    return tokens * 2 * shape.matrices / (machine.flops * machine.utilisation * hardware.ranks)


def shares(wanted: Mapping[Stage, float], seconds: float) -> dict[Stage, float]:
    """What each stage gets of so many seconds: the same, but what one does not need goes to those that want more."""
    found, left = {}, seconds
    for i, stage in enumerate(sorted(wanted, key=wanted.__getitem__)):
        found[stage] = min(wanted[stage], left / (len(wanted) - i))
        left -= found[stage]
    return found


def _fitted(stage: Stage, shape: Shape, data: Data, hardware: Hardware) -> Job:
    job = _job(stage, shape, data, hardware)
    fits = fitting(job, hardware.machine)
    if fits is None:
        raise ValueError(f"--base must fit {hardware.name}, as a {stage} stage; it {verdict(job, hardware.machine)}.")
    return fits[1]


def _seconds(job: Job, data: Data, hardware: Hardware) -> float:
    """Of a step, with texts of the usual length, and what is auto as for the longest, for which memory must do."""
    job = as_trained(job, hardware.machine)
    return step_time(replace(job, length=min(job.length, data.mean)), hardware.machine).total


def _enough(stage: Stage, epoch: float) -> int:
    """Steps of a stage, an epoch of which has so many. Stages without labels stop early, as published."""
    most = max(MOST, epoch) if stage == "supervised" else MOST
    return ceil(min(epoch * EPOCHS[stage], most))


def _rate(stage: Stage, shape: Shape, steps: int) -> float:
    """For a large base the published one, raised as fewer steps, and a rate that falls to 0, move weights less."""
    highest, lowest, published = RATES[stage]
    if shape.base >= LARGE:
        return min(lowest, float(f"{published * max(1, 2 * MOST / steps):.1e}"))
    return min(highest, max(lowest, float(f"{REACH / steps:.1e}")))


def _job(stage: Stage, shape: Shape, data: Data, hardware: Hardware) -> Job:
    """As large as is usual; it need not fit."""
    rows = data.rows[stage]
    fewest = 2 * max(2, hardware.ranks)
    if rows < fewest:
        raise ValueError(f"--data must have at least {fewest} rows for a {stage} stage on {hardware.name}; got {rows}")
    usual = ROWS[stage] if hardware.gpus else 32
    batch = max(min(usual, 1 << (rows // 2).bit_length() - 1), hardware.ranks)  # a power of 2, and a row for each
    return Job(
        stage=stage,
        shape=shape,
        adapter=Adapter(),
        global_batch=batch,
        length=data.length,
        nodes=hardware.nodes,
        gpus=max(1, hardware.gpus),
        dtype=hardware.dtype,
        attention_dropout=0.3 if stage == "simcse" else 0.0,
        chunk_tokens=8192 if hardware.gpus else 2048,
        recompute="auto" if hardware.gpus else False,
        negatives=data.negatives,
        cuda=bool(hardware.gpus),
    )
