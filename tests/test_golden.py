"""Golden losses: a tiny run of each stage in float32 on one thread must give the numbers below, step by step.

They pin the numerics of all that lies between a text and its loss: tokens, order of data, masks, dropout's random
numbers, attention, pooling, losses, optimizer, schedule. So the rule: who moves them does so in a commit of its own,
with nothing else in it, whose message says why the new numbers are right (`CONTRIBUTING.md`, "A change of numerics is
proved harmless"). `python -m pytest tests/test_golden.py -s` prints the numbers found.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import runs

GOLDEN = {
    "MNTP": [7.500249, 7.302444, 7.031288, 7.245304, 6.718441, 7.285031],
    "SimCSE": [1.183969, 1.359401, 1.222362, 1.14418, 1.173832, 1.226051],
    "Supervised": [2.009822, 2.179649, 1.987239, 2.093438, 1.954565, 1.988917],
}


@pytest.mark.parametrize("stage", GOLDEN)
def test_losses_are_the_golden_ones(stage: str, tmp_path: Path, tiny_llama: Path) -> None:
    runs.write_data(tmp_path, rows=30)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    settings: dict[str, object] = {"trainer.logger": logger, "model.init_args.chunk_tokens": 80}
    if stage != "MNTP":
        settings["model.init_args.loss"] = {"scale": 2}  # a loss near 0 would be all rounding error
    config = runs.write_stage(tmp_path, stage, tiny_llama, steps=6, **settings)
    runs.run("fit", "--config", config, cwd=tmp_path)
    [metrics] = (tmp_path / "logs").rglob("metrics.csv")
    found = [float(row["train/loss"]) for row in csv.DictReader(metrics.open()) if row["train/loss"]]
    print(f'\n    "{stage}": [{", ".join(f"{loss:.7g}" for loss in found)}],')
    # processors round differently, and AdamW's first steps enlarge that; a change of method moves losses far more
    assert found == pytest.approx(GOLDEN[stage], rel=1e-4)
