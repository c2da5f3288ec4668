"""Under a real trainer: every checkpoint goes on exactly where it was written, and loaders cause no warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from ranks import run_ranks
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules import Sentences, Source
from datamodules.base import TextData
from otherside.batching import TextBatch

Write = Callable[..., str]


class Recorder(LightningModule):
    """Writes down the rows of every batch that took part in training, and the weight after each."""

    def __init__(self, stop_after: int | None = None, plan_schedule: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after, self.plan_schedule = stop_after, plan_schedule
        self.seen: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append((batch.step, batch.rows.tolist()))
        return self.weight * batch.rows.float().mean()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self.validated += batch.rows.tolist()
        self.log("loss", self.weight.detach(), batch_size=len(batch.texts))

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[int]:
        return batch.rows.tolist()

    def configure_optimizers(self) -> Any:
        if self.plan_schedule:  # asks for the loader before the checkpoint is restored
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: TextData, folder: Path, module: Recorder, ckpt: Path | None = None, **settings: Any) -> Trainer:
    save = settings.pop("save", {"every_n_train_steps": 1})
    callbacks: list[Callback] = [ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **save)]
    trainer = Trainer(
        **{"max_epochs": 3, "devices": 1, "use_distributed_sampler": False, **settings},
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return trainer


def test_a_sampler_of_lightnings_own_is_refused(
    sentences_of: Callable[..., Sentences], write_texts: Write, tmp_path: Path
) -> None:
    """It would deal out once more what the plan has dealt out."""
    data = sentences_of(write_texts(21))

    def start() -> None:
        module = Recorder()
        with pytest.raises(ValueError, match=r"trainer\.use_distributed_sampler must be false.*Set trainer\.use_dist"):
            fit(data, tmp_path, module, devices=2, strategy="ddp", use_distributed_sampler=True)
        assert not module.seen

    run_ranks(2, start, group=False)


CASES: dict[str, dict[str, Any]] = {
    "every step": {},
    "accumulating": {"accumulate_grad_batches": 2},
    "by max_steps": {"max_steps": 13, "max_epochs": -1},
    "part of an epoch": {"limit_train_batches": 3, "max_epochs": 4},
    "on validation": {"save": {"monitor": "loss"}, "val_check_interval": 2},
    "on validation, accumulating": {"save": {"monitor": "loss"}, "val_check_interval": 2, "accumulate_grad_batches": 2},
    "at the end of epochs": {"save": {"every_n_epochs": 1, "save_on_train_epoch_end": True}},
    "at the end of epochs, by max_steps": {
        "save": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        "max_steps": 13,
        "max_epochs": -1,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_every_checkpoint_resumes_exactly(
    sentences_of: Callable[..., Sentences], write_texts: Write, tmp_path: Path, name: str
) -> None:
    """21 rows in batches of 4: five steps an epoch of Lightning's, and epochs of the source end inside batches."""
    path = write_texts(21)
    settings = CASES[name]

    def data() -> Sentences:
        return sentences_of(path, val_sources=[Source(path)])

    whole = Recorder()
    fit(data(), tmp_path / "ckpt", whole, **settings)
    steps = [step for step, _ in whole.seen]
    assert steps == list(range(len(steps))) and len(steps) >= 12
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints[:: 2 if len(checkpoints) > 6 else 1]:
        trained = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
        resumed = Recorder(plan_schedule=True)
        fit(data(), tmp_path / "again", resumed, checkpoint, **settings)
        assert resumed.seen == whole.seen[trained["processed"] :], checkpoint.name
        assert resumed.weight.equal(whole.weight)


def test_resume_with_workers_and_a_planned_schedule(
    sentences_of: Callable[..., Sentences], write_texts: Write, tmp_path: Path
) -> None:
    """`estimated_stepping_batches` calls `iter()` on the loader before the trainer knows how far it was."""
    path = write_texts(21)
    whole = Recorder()
    fit(sentences_of(path), tmp_path / "whole", whole)
    cut = Recorder(stop_after=7)
    with pytest.raises(BaseException):  # noqa: B017 -- Lightning turns the interrupt into an exit
        fit(sentences_of(path, num_workers=2), tmp_path / "cut", cut)
    last = max((tmp_path / "cut").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    resumed = Recorder(plan_schedule=True)
    fit(sentences_of(path, num_workers=2), tmp_path / "cut", resumed, last)
    assert cut.seen + resumed.seen == whole.seen
    assert resumed.weight.equal(whole.weight)


def test_validation_and_prediction_under_a_trainer(
    sentences_of: Callable[..., Sentences], write_texts: Write, tmp_path: Path
) -> None:
    path = write_texts(21)
    data = sentences_of(path, val_sources=[Source(path)], predict_sources=[Source(path), Source(path)], num_workers=2)
    module = Recorder()
    trainer = fit(data, tmp_path, module, max_epochs=1, num_sanity_val_steps=0)
    assert module.validated == list(range(21))
    predictions: Any = trainer.predict(module, datamodule=data)
    assert [row for batch in predictions for row in batch] == list(range(42))


def test_prediction_does_not_need_the_training_files(tokenizer: PreTrainedTokenizerBase, write_texts: Write) -> None:
    data = Sentences(
        tokenizer,
        [Source("gone.jsonl")],
        predict_sources=[Source(write_texts(5))],
        global_batch_size=4,
        max_length=8,
        num_workers=0,
    )
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    predictions: Any = trainer.predict(Recorder(), datamodule=data)
    assert [row for batch in predictions for row in batch] == list(range(5))


def test_no_validation_sources_means_no_validation(
    sentences_of: Callable[..., Sentences], write_texts: Write, tmp_path: Path
) -> None:
    module = Recorder()
    fit(sentences_of(write_texts(21)), tmp_path, module, max_epochs=1)
    assert len(module.seen) == 5 and not module.validated
