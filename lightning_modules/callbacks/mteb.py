"""MTEB scores while a stage trains, and in `lightning test`: all ranks encode, and training does not notice."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules import history, signals
from lightning_modules.base import EncoderModule
from lightning_modules.callbacks.monitors import PREFIX
from lightning_modules.callbacks.undisturbed import leave_out, publish, undisturbed
from lightning_modules.checkpoints import check
from otherside import distributed
from otherside.batching import Packed, TextBatch, tokens_at_once
from otherside.evaluation import Evaluation, Scores, model_meta
from otherside.evaluation.run import OutOfTimeError
from otherside.serving import Serving
from otherside.tokenising import tokenise

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass
class MTEBSettings:
    """MTEB during training and in `lightning test`. Results are written to `<trainer.default_root_dir>/mteb` too.

    Args:
        tasks: sts-fast, llm2vec-15, a benchmark of mteb such as "MTEB(eng, v2)", or task names. None: no MTEB.
        every_n_steps: optimizer steps between two evaluations. None: only at the start and the end.
        at_start: also before the first step.
        at_end: also after the last step.
        data: folder with local copies of tasks, ORG__NAME; a task that is not there comes from the hub.
        languages: ISO 639-3 codes; of tasks in several languages only the parts in these. None: all.
        instructions: put before texts; by task (SciFact), type of task (Retrieval), side (query, document) or both
            (SciFact-query).
        time_budget: of one evaluation, such as 90s, 10m or 2h. Tasks that do not fit are left out, and named.
    """

    tasks: str | list[str] | None = None
    every_n_steps: int | None = None
    at_start: bool = True
    at_end: bool = True
    data: str | None = None
    languages: list[str] | None = field(default_factory=lambda: ["eng"])
    instructions: dict[str, str] = field(default_factory=dict)
    time_budget: str | None = None

    def __post_init__(self) -> None:
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ValueError(
                f"mteb.every_n_steps must be at least 1, or null for start and end; got {self.every_n_steps}"
            )
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"mteb.time_budget must be longer than nothing; got {self.time_budget}")

    @property
    def seconds(self) -> float | None:
        """The time budget."""
        if self.time_budget is None:
            return None
        if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", self.time_budget.strip())):
            raise ValueError(f"mteb.time_budget must be a time such as 90s, 10m or 2h; got {self.time_budget!r}")
        return float(found[1]) * UNITS[found[2]]


class StoppedError(Exception):
    """The run was asked to stop while it was evaluated."""


class MTEB(pl.Callback):
    """Logs `mteb/TASK` and, when all tasks were finished, `mteb/mean`; `ModelCheckpoint` and `EarlyStopping` that watch
    one look at it right after.

    Args:
        settings: which tasks, when.
    """

    def __init__(self, settings: MTEBSettings) -> None:
        self.settings = settings
        self._evaluation: Evaluation  # on rank 0
        self._serving: Serving
        self.logged: list[str] = []  # the metrics' names
        self._last: dict[str, Any] = {"step": -1, "metrics": {}}

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the tasks now, so that what is wrong with them is said before training."""
        assert isinstance(pl_module, EncoderModule)
        if stage not in ("fit", "test"):
            return

        def prepare(texts: list[str], instruction: str) -> Packed:
            return Packed.from_tokens(tokenise(pl_module.tokenizer, texts, pl_module.max_length, instruction))

        def forward(texts: Packed) -> Tensor:
            batch = TextBatch(0, texts, torch.arange(len(texts))).cut(tokens_at_once(pl_module.device))
            return trainer.strategy.predict_step(batch.to(pl_module.device), 0)

        if said := self._forgotten(trainer.datamodule):  # type: ignore[attr-defined]
            distributed.say(said)
        self._serving = Serving(prepare, forward)
        with undisturbed(pl_module):
            self.logged = self._serving.run(lambda: self._load(Path(trainer.default_root_dir)))

    def _forgotten(self, data: Any) -> str:
        """What to set where training has instructions and evaluation has none; else empty."""
        prompts = history.prompts(getattr(data, "sources", None) or [], getattr(data, "kind", "text"))
        if not any(prompts.values()) or self.settings.instructions:
            return ""
        sides = {side: prompts[side] for side in ("query", "document") if prompts.get(side)}
        example = json.dumps(sides or {"TASK": next(filter(None, prompts.values()))}, ensure_ascii=False)
        return (
            f"mteb reads texts without the instructions of training. To give it some, set mteb.instructions: {example}"
        )

    def _load(self, root: Path) -> list[str]:
        settings = self.settings
        assert settings.tasks is not None
        data = Path(settings.data).expanduser() if settings.data else None
        self._evaluation = Evaluation(settings.tasks, settings.languages, data, settings.instructions, root / "mteb")
        return [f"{PREFIX}{name}" for name in (*(task.metadata.name for task in self._evaluation.tasks), "mean")]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        known = {name: torch.tensor(value) for name, value in self._last["metrics"].items()}
        trainer.callback_metrics.update(known)  # of a run that is resumed
        if self._due(trainer):  # or a run is resumed that was stopped while it was evaluated
            self._evaluate(trainer, pl_module, trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > 0 and self._due(trainer):
            self._evaluate(trainer, pl_module, trainer.global_step)

    def _due(self, trainer: pl.Trainer) -> bool:
        """Whether to evaluate at this step; at the last one now, not in `on_train_end`, for ModelCheckpoint to see."""
        step, every = trainer.global_step, self.settings.every_n_steps
        if step == 0:
            return self.settings.at_start
        return (every is not None and step % every == 0) or (self.settings.at_end and step == trainer.max_steps)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.settings.at_end:
            self._evaluate(trainer, pl_module, trainer.global_step)

    @override  # alone where a run is resumed behind its last step, which Lightning does not train
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.settings.at_end and trainer.global_step != self._last["step"]:
            pl_module.to(trainer.strategy.root_device)  # from the host, where Lightning has put it by now
            self._evaluate(trainer, pl_module, trainer.global_step)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last["step"] = -1
        self._evaluate(trainer, pl_module, check(Path(trainer.ckpt_path)) if trainer.ckpt_path else 0)

    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        assert isinstance(pl_module, EncoderModule)
        if step == self._last["step"]:
            return  # with accumulated gradients several batches end at the same step
        began = time.perf_counter()
        with undisturbed(pl_module):
            scores = self._serving.run(lambda: self._lead(trainer, pl_module, step))
        if isinstance(scores, int):
            signals.agree(scores)
            return
        metrics = {f"{PREFIX}{name}": score for name, score in scores.tasks.items()}
        if scores.mean is not None:
            metrics[f"{PREFIX}mean"] = scores.mean
        self._last = {"step": step, "metrics": {**self._last["metrics"], **metrics}}
        publish(trainer, metrics, step, report(scores, step))
        leave_out(trainer, time.perf_counter() - began)

    def _lead(self, trainer: pl.Trainer, module: EncoderModule, step: int) -> Scores | int:
        """On rank 0; the signal if the run was asked to stop, as there is no time then."""
        budget, began = self.settings.seconds, time.monotonic()

        def in_time() -> None:
            if signals.asked():
                raise StoppedError
            if budget is not None and time.monotonic() - began > budget:
                raise OutOfTimeError

        sources = [source.path for source in getattr(trainer.datamodule, "sources", [])]  # type: ignore[attr-defined]
        meta = model_meta(module.encoder, self.settings.instructions, module.stage, step, sources)
        try:
            return self._evaluation.run(lambda texts, say: self._serving.encode(texts, say, in_time), meta, budget)
        except StoppedError:
            distributed.say(f"mteb at step {step}: stopped; it begins anew when the run goes on")
            return signals.asked()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._last

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict


def report(scores: Scores, step: int) -> str:
    """One line for people."""
    shown = "  ".join(f"{name} {score:.4f}" for name, score in scores.tasks.items())
    mean = f"  mean {scores.mean:.4f}" if scores.mean is not None else ""
    left = f"  left out, as mteb.time_budget is spent: {', '.join(scores.left_out)}" if scores.left_out else ""
    return f"mteb at step {step}: {shown}{mean}{left}  ({scores.seconds:.0f} s)"
