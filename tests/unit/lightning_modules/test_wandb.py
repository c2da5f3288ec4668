"""W&B beside a run's folder, with a logger that takes its settings and its place."""

from __future__ import annotations

import json
from pathlib import Path

import runs


def test_a_run_that_goes_on_is_the_same_and_leaves_nothing_outside(tmp_path: Path, tiny_llama: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "train/loss"}}
    settings = {"trainer.logger": {"class_path": "pretend.WandbLogger"}, "trainer.callbacks": [best]}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", steps=4, **settings)
    before = {path.name for path in tmp_path.iterdir()}
    for steps in ("2", "4"):
        runs.run("fit", "--config", config, "--trainer.max_steps", steps, cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - before == {"run"}
    root = tmp_path / "run"
    first, second = (json.loads(line)["id"] for line in (root / "wandb" / "starts.jsonl").read_text().splitlines())
    assert first and first == second
    assert (root / "config.yaml").is_file() and list(root.rglob("lightning_logs/*/checkpoints/*.ckpt"))
    runs.run("report", "run", "--out", "out", cwd=tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Curves are in Weights &amp; Biases: run (run {first})." in page
