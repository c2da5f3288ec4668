"""What a run notes of its software, hardware and time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
import torch
import transformers

from lightning_modules.callbacks.environment import Environment, sizes
from lightning_modules.finished import starts


def test_every_start_is_noted(tmp_path: Path, tiny_llama: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    stage = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", steps=2)
    runs.run("fit", "--config", stage, cwd=tmp_path)
    [first] = starts(tmp_path / "run")
    assert (first["first_step"], first["last_step"]) == (0, 2)
    assert first["packages"]["torch"] == torch.__version__
    assert first["packages"]["transformers"] == transformers.__version__
    assert first["cores"] == len(os.sched_getaffinity(0)) and first["threads"] == 1
    assert (first["ranks"], first["nodes"], first["precision"]) == (1, 1, "32-true")
    assert first["seconds"] > 0 and first["device"]
    runs.run("fit", "--config", stage, "--trainer.max_steps", "3", cwd=tmp_path)
    again = starts(tmp_path / "run")
    assert [(start["first_step"], start["last_step"]) for start in again] == [(0, 2), (2, 3)]
    assert again[0] == first


def test_parameters_are_counted() -> None:
    module = torch.nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert sizes(module) == {"all": 8, "trained": 6}


def test_no_notes_and_broken_notes(tmp_path: Path) -> None:
    assert starts(tmp_path) == []
    (tmp_path / "environment.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"environment\.json must hold notes of a run.*Move it away"):
        starts(tmp_path)


def test_broken_notes_are_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "environment.json").write_text("{")
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        default_root_dir=str(tmp_path),
        global_step=3,
        world_size=1,
        num_nodes=1,
        strategy=strategy,
        precision="32-true",
        fast_dev_run=False,
    )
    Environment().on_train_start(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert [start["first_step"] for start in starts(tmp_path)] == [3]
    aside = tmp_path / "environment.json.broken"
    assert aside.read_text() == "{" and f"cannot be read, and is now {aside}" in capsys.readouterr().err
