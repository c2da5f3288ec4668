"""Scores of MTEB tasks, within a time budget."""

from __future__ import annotations

import copy
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otherside.evaluation.model import MTEBModel
from otherside.evaluation.tasks import check_instructions, find_tasks, load

if TYPE_CHECKING:
    from mteb.models import ModelMeta

SEED = 42  # what mteb seeds with before every task
Encode = Callable[[list[str], str], np.ndarray]


class OutOfTimeError(Exception):
    """The time budget is spent; raised inside `encode`, caught by `Evaluation.run`."""


@dataclass
class Scores:
    """What an evaluation found.

    Args:
        tasks: main score of each task that was finished.
        left_out: tasks that did not fit into the time budget.
        seconds: what it took.
    """

    tasks: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def mean(self) -> float | None:
        """Mean over all tasks; None if one was left out, as it would mean something else."""
        return float(np.mean(list(self.tasks.values()))) if self.tasks and not self.left_out else None


class Evaluation:
    """Tasks with their data, to be run any number of times with equal results.

    Args:
        tasks: see `tasks.find_tasks`.
        languages: see `tasks.find_tasks`.
        data: folder with local copies, ORG__NAME; a task that is not there comes from the hub.
        instructions: see `MTEBModel`.
        results: folder for results in mteb's own format; None writes none.

    Raises:
        ValueError: an unknown task, or an instruction for one.
        FileNotFoundError: a task's data is neither in `data` nor on the hub.
    """

    def __init__(
        self,
        tasks: str | Sequence[str],
        languages: Sequence[str] | None = None,
        data: Path | None = None,
        instructions: Mapping[str, str] | None = None,
        results: Path | None = None,
    ) -> None:
        if data and not data.is_dir():
            raise FileNotFoundError(f"mteb.data must be a folder with tasks as ORG__NAME; there is no {data}")
        self.instructions, self.results = dict(instructions or {}), results
        with _quiet():
            check_instructions(self.instructions)
            self.tasks = find_tasks(tasks, languages)
            for task in self.tasks:
                load(task, data)
        self._random = [copy.deepcopy((task.rng_state, task.np_rng)) for task in self.tasks]
        self._took: dict[str, float] = {}

    def run(self, encode: Encode, meta: ModelMeta, time_budget: float | None = None) -> Scores:
        """Evaluate; nothing is taken from earlier results.

        Global random states are left as mteb leaves them.

        Args:
            encode: (texts, instruction) -> vectors (N, D). It may raise `OutOfTimeError` at any time, to give up a
                task, or another error, to give up all.
            meta: of the model, from `model_meta`.
            time_budget: seconds. Tasks that would not fit, judged by the last time they ran, are not begun.
        """
        import mteb

        model = MTEBModel(encode, meta, self.instructions)
        scores, begun = Scores(), time.monotonic()
        for task, state in zip(self.tasks, self._random, strict=True):
            name, started = task.metadata.name, time.monotonic()
            if time_budget is not None and started - begun + self._took.get(name, 0) > time_budget:
                scores.left_out.append(name)
                continue
            task.rng_state, task.np_rng = copy.deepcopy(state)
            _seed()
            try:
                with _quiet():
                    found = mteb.evaluate(
                        model,
                        task,
                        cache=None,  # it would keep the first half of a task that is cut
                        co2_tracker=False,
                        show_progress_bar=False,
                        encode_kwargs={"batch_size": 64, "show_progress_bar": False},
                    )
            except OutOfTimeError:
                scores.left_out.append(name)
                self._took[name] = max(self._took.get(name, 0), time.monotonic() - started)  # at least that long
                continue
            [result] = found.task_results
            if self.results:
                mteb.ResultCache(self.results).save_to_cache(result, meta)
            scores.tasks[name] = float(result.get_score())
            self._took[name] = time.monotonic() - started
        scores.seconds = time.monotonic() - begun
        return scores


def _seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@contextmanager
def _quiet() -> Iterator[None]:
    """Only errors: mteb and datasets say much that is meant for others."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("mteb", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
