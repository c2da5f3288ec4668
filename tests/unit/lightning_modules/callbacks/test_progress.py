"""Progress: lines for log files, a bar for terminals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import runs
import stages

from lightning_modules.callbacks import RunProgressBar
from lightning_modules.mntp import MNTP


def steps_shown(output: str) -> list[str]:
    return re.findall(r"^step (\d+/\d+)  train/loss \d\S*  lr \d", output, re.MULTILINE)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_line_per_log_interval_and_one_for_the_last_step(accumulate: int, tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=48)
    settings = {"trainer.accumulate_grad_batches": accumulate, "trainer.log_every_n_steps": 2}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", steps=5, **settings)
    output = runs.run("fit", "--config", config, cwd=tmp_path)
    assert steps_shown(output) == ["2/5", "4/5", "5/5"]
    *_, step, end = output.rstrip().splitlines()
    assert step.endswith("left 0:00:00") and end == "finished: run/encoder"
    assert "Seed set" not in output and "WARNING" not in output  # nor anything else that a library says to nobody


def test_after_a_resume_lines_go_on(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=24)
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", steps=4)
    runs.run("fit", "--config", config, "--trainer.max_steps", "2", cwd=tmp_path)
    assert steps_shown(runs.run("fit", "--config", config, cwd=tmp_path)) == ["3/4", "4/4"]


class Totals(pl.Callback):
    """How long the bar says each epoch is."""

    def __init__(self, bar: RunProgressBar) -> None:
        self.bar, self.found = bar, []  # type: tuple[RunProgressBar, list[float]]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found.append(self.bar.total_train_batches)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_steps": 5}, [3, 2]),
        ({"max_steps": 1, "accumulate_grad_batches": 2}, [2]),
        ({"max_steps": 3, "accumulate_grad_batches": 2}, [2, 2, 2]),  # of three batches the last begins the next epoch
        ({"max_epochs": 2}, [3, 3]),
    ],
)
def test_the_bar_ends_where_the_run_ends(
    settings: dict[str, Any], expected: list[int], tiny_llama: Path, tmp_path: Path
) -> None:
    runs.write_data(tmp_path, rows=24)
    module, bar = stages.build(MNTP, tiny_llama), RunProgressBar()
    totals = Totals(bar)
    trainer = stages.trainer(tmp_path, bar, totals, enable_progress_bar=True, **settings)
    trainer.fit(module, stages.data(module, tmp_path / "sentences.txt"))
    assert totals.found == expected
    shown = bar.get_metrics(trainer, module)  # short enough for a line; Lightning's version number is not among them
    assert "loss" in shown and set(shown) <= {"loss", "tokens/s"}
    assert bar._get_train_description(0).strip() == ("step" if "max_steps" in settings else "Epoch 0/1")
