"""What callbacks watch: there from the start, and looked at when it is new."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from typing_extensions import override

PREFIX = "mteb/"
ALWAYS = ("step", "epoch", "train/loss", "lr", "grad_norm")
MEASURED = (PREFIX, "probe/")  # by callbacks, in between
NEEDS = "mteb/… needs mteb.tasks, val/… data.val_sources, probe/… the callback Probing."
OURS = ("train/", "val/", *MEASURED)


class Best(ModelCheckpoint):
    """The checkpoint where `metric` is best, looked at when it is new: after MTEB, probes or a validation."""

    def __init__(self, folder: Path, metric: str) -> None:
        mode = "min" if metric.endswith(("loss", "perplexity")) or metric.startswith("probe/anisotropy") else "max"
        super().__init__(
            folder, "{step}", monitor=metric, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
        )

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Paths are absolute, and the run's folder may have been moved. Of another run, nothing is best so far."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        if Path(here(state_dict["best_model_path"])).is_dir():
            paths = {name: here(state_dict[name]) for name in state_dict if name.endswith("_path")}
            models = {here(path): score for path, score in state_dict["best_k_models"].items()}
            super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath})


class Monitors(pl.Callback):
    """Lets `EarlyStopping` and `ModelCheckpoint` look at scores of MTEB and of probes when they are measured, and only
    then: left to themselves they look at the end of an epoch, at a stale score.
    """

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise a ValueError if a metric that is watched will never be there."""
        if stage != "fit":
            return
        for watcher in watchers(trainer):
            check(watcher, logged(trainer, pl_module))
            if str(watcher.monitor).startswith(MEASURED):  # no looking at other times
                name = "_should_skip_check" if isinstance(watcher, EarlyStopping) else "_should_skip_saving_checkpoint"
                setattr(watcher, name, lambda trainer: True)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that was cut between its early stop and its end goes on to its end."""
        trainer.should_stop |= any(stopped(w) for w in watchers(trainer) if isinstance(w, EarlyStopping))


def validates(trainer: pl.Trainer) -> bool:
    """Whether a validation comes behind the batch that ends."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not loop.val_loop.skip and loop._should_check_val_fx(fetcher)


def stopped(watcher: EarlyStopping) -> bool:
    """Whether it has ended the run; not if it was given more patience since."""
    patient = (EarlyStoppingReason.NOT_STOPPED, EarlyStoppingReason.PATIENCE_EXHAUSTED)
    return watcher.stopping_reason not in patient or watcher.wait_count >= watcher.patience > 0


def watchers(trainer: pl.Trainer) -> Iterator[EarlyStopping | ModelCheckpoint]:
    """The callbacks that watch a metric; those that stop before those that save, so that checkpoints know of a stop."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for kind in (EarlyStopping, ModelCheckpoint):
        yield from (callback for callback in callbacks if isinstance(callback, kind) and callback.monitor)


def logged(trainer: pl.Trainer, module: pl.LightningModule) -> list[str]:
    """Metrics that there will be; as far as this project logs them."""
    by_callbacks = [name for c in trainer.callbacks for name in getattr(c, "logged", [])]  # type: ignore[attr-defined]
    validated = getattr(trainer.datamodule, "val_sources", None)  # type: ignore[attr-defined]
    val = ["val/loss", *(["val/mrr"] if hasattr(module, "mrr") else [])] if validated else []
    return [*ALWAYS, *val, *by_callbacks]


def check(watcher: EarlyStopping | ModelCheckpoint, names: list[str]) -> None:
    """Raise a ValueError if the metric will not be there. A stage or callback of one's own may log others."""
    name = str(watcher.monitor)
    if isinstance(watcher, Best) and name in ALWAYS:
        raise ValueError(
            f"checkpoints.best must be of texts that are not trained on, val/…, mteb/… or probe/…; got {name}. "
            "Set it to val/loss, or to null for the last step."
        )
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if name in names or not (near or name.startswith(OURS)):
        return
    setting = "checkpoints.best" if isinstance(watcher, Best) else f"{type(watcher).__name__}.monitor"
    raise ValueError(
        f"{setting} must be a metric that is logged: {', '.join(names)}; got {name}. "
        + (f"Did you mean {near[0]}?" if near else NEEDS)
    )


def judge(trainer: pl.Trainer, fresh: Iterable[str | None]) -> None:
    """Let those that watch one of these metrics look at it; on all ranks."""
    for watcher in watchers(trainer):
        if watcher.monitor in fresh:
            if isinstance(watcher, EarlyStopping):
                watcher._run_early_stopping_check(trainer)
            elif trainer.global_step and not ModelCheckpoint._should_skip_saving_checkpoint(watcher, trainer):
                candidates = watcher._monitor_candidates(trainer)
                watcher._save_topk_checkpoint(trainer, candidates)
                watcher._save_last_checkpoint(trainer, candidates)
