"""One task, one variant, one layer: train its probes, and its controls, and score them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from otherside.probing.probes import Run, linear_probe, mlp_probes
from otherside.probing.results import Row
from otherside.probing.scores import DRAWS, Score, check_numbers, common, count, resample, score
from otherside.probing.tasks import SEED, Condition, Mlp, Task


@dataclass(frozen=True)
class Protocol:
    """How probes are trained and repeated.

    Args:
        repeats: how often, with seeds from 42 on, that is, with other starting weights and, where the data come without
            a test set, another split. Controls are measured once.
        mlp: train multilayer perceptrons too.
        controls: measure with shuffled labels and with words without context, too.
    """

    repeats: int = 5
    mlp: bool = True
    controls: bool = True

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1; got {self.repeats}")

    def conditions(self, task: Task) -> list[Condition]:
        """What to measure of a task."""
        alone: list[Condition] = ["no context"] if task.alone else []
        return ["context", "shuffled labels", *alone] if self.controls else ["context"]


@dataclass
class _Trial:
    """One probe under one condition: what it read, which items it was tested on, and what it said in each repeat."""

    input: str
    probe: str
    condition: Condition
    targets: np.ndarray
    tests: list[np.ndarray]
    predicted: list[np.ndarray]


def measure(
    task: Task, vectors: Mapping[Condition, np.ndarray], layer: int, protocol: Protocol, device: str = "cpu"
) -> list[Row]:
    """All numbers of a task.

    Args:
        task: N items.
        vectors: (N, W, D) word vectors; `no context` only where it is measured.
        layer: that they were taken from; goes into the rows.
        protocol: see `Protocol`.
        device: to train MLPs on.

    Raises:
        ValueError: a vector has NaN.
    """
    for found in vectors.values():
        check_numbers(f"word vectors of {task.name} at layer {layer}", found)
    trials = [*_linear(task, vectors, protocol)]
    if protocol.mlp:
        trials += _mlps(task, vectors, protocol, device)
    rows = []
    for trial in trials:
        for target, metrics in _scores(task, trial, _draws(task, trial)):
            rows += [
                Row(task.name, trial.input, target, layer, trial.probe, trial.condition, metric, found)
                for metric, found in metrics.items()
            ]
    return rows


def _draws(task: Task, trial: _Trial) -> list[np.ndarray]:
    """Per repeat (B, n) numbers of its test items; a draw has the same words in every repeat."""
    tested = np.unique(np.concatenate(trial.tests))
    strata = None if task.regression else common(task.groups, trial.targets)
    times = np.zeros((DRAWS, len(task.groups)), np.int32)
    times[:, tested] = count(len(tested), task.groups[tested], None if strata is None else strata[tested], _seed(task))
    drawn: dict[bytes, np.ndarray] = {}
    for test in trial.tests:
        if test.tobytes() not in drawn:
            drawn[test.tobytes()] = resample(times[:, test], None if strata is None else strata[test], _seed(task))
    return [drawn[test.tobytes()] for test in trial.tests]


def _seed(task: Task) -> int:
    """Of its draws: tasks do not share them, or their errors would seem to go together."""
    return zlib.crc32(task.name.encode())


def _trials(
    task: Task, vectors: Mapping[Condition, np.ndarray], protocol: Protocol
) -> Iterator[tuple[str, Condition, np.ndarray, np.ndarray, list[int]]]:
    """Name of the input, condition, (N, F) features, targets, seeds."""
    for condition in protocol.conditions(task):
        found = vectors["no context" if condition == "no context" else "context"]
        targets = task.targets
        if condition == "shuffled labels":
            targets = np.random.default_rng(SEED).permutation(targets)
        seeds = [SEED + i for i in range(protocol.repeats if condition == "context" else 1)]
        for name, read in task.inputs.items():
            yield name, condition, read.read(found), targets, seeds


def _linear(task: Task, vectors: Mapping[Condition, np.ndarray], protocol: Protocol) -> Iterator[_Trial]:
    for name, condition, inputs, targets, seeds in _trials(task, vectors, protocol):
        splits = [task.split(seed) for seed in (seeds[:1] if task.test is not None else seeds)]  # no seed but the split
        predicted = [linear_probe(inputs[train], targets[train], inputs[test]) for train, test in splits]
        yield _Trial(name, "linear", condition, targets, [test for _, test in splits], predicted)


def _mlps(task: Task, vectors: Mapping[Condition, np.ndarray], protocol: Protocol, device: str) -> list[_Trial]:
    planned: list[tuple[Mlp, _Trial, list[Run]]] = []
    for name, condition, inputs, targets, seeds in _trials(task, vectors, protocol):
        if (mlp := task.inputs[name].mlp) is not None:
            runs = [Run(inputs, targets, *task.split(seed), seed) for seed in seeds]
            planned.append((mlp, _Trial(name, "mlp", condition, targets, [run.test for run in runs], []), runs))

    def kind(plan: tuple[Mlp, _Trial, list[Run]]) -> tuple[str, int]:
        return str(plan[0]), plan[2][0].inputs.shape[1]

    for _, alike in groupby(sorted(planned, key=kind), key=kind):
        together = list(alike)
        found = iter(mlp_probes([run for _, _, runs in together for run in runs], together[0][0], device=device))
        for _, trial, runs in together:
            trial.predicted = [next(found) for _ in runs]
    return [trial for _, trial, _ in planned]


def _scores(task: Task, trial: _Trial, draws: list[np.ndarray]) -> Iterator[tuple[str, dict[str, Score]]]:
    """Scores by target: of the one that there is, or of each rating and of their mean."""
    targets = [trial.targets[test] for test in trial.tests]
    if not task.regression:
        yield "", score(trial.predicted, targets, draws, _seed(task))
        return
    by_aspect = {
        aspect: score([p[:, i] for p in trial.predicted], [t[:, i] for t in targets], draws, _seed(task))
        for i, aspect in enumerate(task.aspects)
    }
    if len(by_aspect) == 1:
        yield "", next(iter(by_aspect.values()))
        return
    yield (
        "mean",
        {metric: _mean([found[metric] for found in by_aspect.values()]) for metric in by_aspect[task.aspects[0]]},
    )
    yield from by_aspect.items()


def _mean(scores: list[Score]) -> Score:
    return Score.of(float(np.mean([s.value for s in scores])), np.mean([s.draws for s in scores], axis=0))
