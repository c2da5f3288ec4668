"""Invariant 4 where a run looks at validation: what it decides by it does not depend on kills.

Losses are given, as no real ones rise and fall to order; all else is a real run, killed and begun again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

from lightning_modules.base import EncoderModule

EARLY = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 2}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    runs.write_data(tmp_path, rows=30)  # three steps an epoch
    return tmp_path


def losing(values: dict[int, float], kill: int | None = None) -> Callable[[], None]:
    """A validation loss by step, and `kill -9` in the step behind `kill`."""

    def before() -> None:
        def log(self: Any, loss: torch.Tensor, batch: Any) -> None:
            self.log("val/loss", torch.tensor(values[self.trainer.global_step]), batch_size=1, on_epoch=True)

        train = EncoderModule.training_step

        def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == kill:
                os._exit(9)
            return train(self, batch, batch_idx)

        EncoderModule._log_validation = log  # type: ignore[method-assign]
        EncoderModule.training_step = step  # type: ignore[method-assign]

    return before


def fit(place: Path, llama: Path, root: str, before: Callable[[], None], **settings: Any) -> tuple[int, str]:
    validation = {
        "data.init_args.val_sources": [{"path": str(place / "pairs.jsonl")}],
        "trainer.val_check_interval": 2,
        "trainer.check_val_every_n_epoch": None,
    }
    config = runs.write_stage(place, "Supervised", llama, root=root, steps=8, **validation, **settings)
    return runs.start("fit", "--config", config, cwd=place, before=before).wait()


def steps(root: Path) -> int:
    """Of which step the encoder is."""
    return int(json.loads((root / "encoder" / "encoder.json").read_text())["steps"])


@pytest.mark.parametrize("kill", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("sixth", [0.8, 2.0])
def test_the_best_checkpoint(sixth: float, kill: int, place: Path, tiny_llama: Path) -> None:
    """Killed right behind a validation, or between two, it is that of step 4."""
    values = {2: 1.0, 4: 0.5, 6: sixth, 8: 3.0}
    best = {"checkpoints.best": "val/loss"}
    status, _ = fit(place, tiny_llama, "cut", losing(values, kill), **best)
    assert status == 9
    status, output = fit(place, tiny_llama, "cut", losing(values), **best)
    assert status == 0, output
    assert steps(place / "cut") == 4
    assert [path.name for path in (place / "cut" / "best").iterdir()] == ["step=4.ckpt"]


def test_the_best_checkpoint_of_a_run_that_was_moved(place: Path, tiny_llama: Path) -> None:
    values = {2: 1.0, 4: 0.5, 6: 0.8, 8: 3.0}
    best = {"checkpoints.best": "val/loss"}
    assert fit(place, tiny_llama, "cut", losing(values, 6), **best)[0] == 9
    (place / "cut").rename(place / "moved")
    status, output = fit(place, tiny_llama, "moved", losing(values), **best)
    assert status == 0 and "encoder/ is that of step=4.ckpt: val/loss 0.5" in output
    assert steps(place / "moved") == 4


def test_what_was_best_in_another_run_is_none_of_this(place: Path, tiny_llama: Path) -> None:
    best = {"checkpoints.best": "val/loss"}
    assert fit(place, tiny_llama, "first", losing({2: 0.1, 4: 0.5, 6: 0.8, 8: 3.0}), **best)[0] == 0
    start = {"ckpt_path": "first/checkpoints/step=6.ckpt"}
    status, output = fit(place, tiny_llama, "second", losing({8: 0.7}), **best, **start)
    assert status == 0 and "encoder/ is that of step=8.ckpt: val/loss 0.7" in output


@pytest.mark.parametrize("kill", [4, 5])
def test_an_early_stop(kill: int, place: Path, tiny_llama: Path) -> None:
    values = {2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0}
    early = {"trainer.callbacks": [EARLY]}
    assert fit(place, tiny_llama, "whole", losing(values), **early)[0] == 0
    assert fit(place, tiny_llama, "cut", losing(values, kill), **early)[0] == 9
    assert fit(place, tiny_llama, "cut", losing(values), **early)[0] == 0
    assert steps(place / "cut") == steps(place / "whole") == 6
    runs.assert_equal(runs.adapter(place / "whole"), runs.adapter(place / "cut"))


def test_ckpt_path(place: Path, tiny_llama: Path) -> None:
    """Of another run it is where the run begins, once; of its own folder, it must be the last."""
    config = runs.write_stage(place, "Supervised", tiny_llama, root="first", steps=6)
    runs.run("fit", "--config", config, cwd=place)
    start = ("--ckpt_path", "first/checkpoints/step=4.ckpt")
    status, output = runs.start("fit", "--config", config, *start, "--trainer.max_steps", "8", cwd=place).wait()
    assert status == 1 and "ckpt_path must be the last checkpoint in first/checkpoints" in output
    assert "got step=4.ckpt, and step=6.ckpt is there. Move the later ones elsewhere" in output
    assert {path.name for path in (place / "first" / "checkpoints").iterdir()} == {"step=4.ckpt", "step=6.ckpt"}
    second = (*start, "--trainer.default_root_dir", "second")
    output = runs.run("fit", "--config", config, *second, cwd=place)
    assert "resumes from first/checkpoints/step=4.ckpt" in output
    again = runs.run("fit", "--config", config, *second, "--trainer.max_steps", "8", cwd=place)
    assert "resumes from second/checkpoints/step=6.ckpt" in again
