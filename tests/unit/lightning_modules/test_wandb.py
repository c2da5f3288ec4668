"""W&B beside a run's folder: the real one, offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs

from lightning_modules.wandb import run_id


def test_a_run_that_goes_on_is_the_same_and_leaves_nothing_outside(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs.write_data(tmp_path, rows=16)
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "train/loss"}}
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger"}
    settings = {"trainer.logger": logger, "trainer.callbacks": [best]}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", steps=4, **settings)
    before = {path.name for path in tmp_path.iterdir()}
    for steps in ("2", "4"):
        runs.run("fit", "--config", config, "--trainer.max_steps", steps, cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - before == {"run"}
    root = tmp_path / "run"
    starts = sorted(path.name for path in (root / "wandb").glob("offline-run-*"))
    assert len(starts) == 2 and {name.rpartition("-")[2] for name in starts} == {run_id(root)}
    assert (root / "config.yaml").is_file() and list(root.rglob("checkpoints/*.ckpt"))
    runs.run("report", "run", "--out", "out", cwd=tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Curves are in Weights &amp; Biases: run (run {run_id(root)})." in page
