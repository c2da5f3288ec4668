"""`recompute: auto` and `activation_checkpointing: auto`: decided by free memory, without another result."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import psutil
import pytest
import runs
import stages
import torch
from ranks import run_ranks

from datamodules import Sentences, Source
from lightning_modules import SimCSE, recomputing
from lightning_modules.base import EncoderModule
from otherside import distributed


def losses(folder: Path, llama: Path, **settings: Any) -> tuple[list[float], str]:
    folder.mkdir()
    runs.write_data(folder, rows=30)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    config = runs.write_stage(
        folder, "SimCSE", llama, steps=2, **{"trainer.logger": logger, "model.init_args.chunk_tokens": 40, **settings}
    )
    output = runs.run("fit", "--config", config, cwd=folder)
    [metrics] = (folder / "logs").rglob("metrics.csv")
    rows = csv.DictReader(metrics.open())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]], output


def test_a_small_run_computes_nothing_twice_and_says_so(tmp_path: Path, tiny_llama: Path) -> None:
    found, output = losses(tmp_path / "auto", tiny_llama)
    assert "computed again in backward: nothing, training needs 0.0 GB beside the weights" in output
    asked = {"model.init_args.recompute": True, "model.init_args.backbone.activation_checkpointing": True}
    expected, output = losses(tmp_path / "asked", tiny_llama, **asked)
    assert "computed again" not in output
    assert found == expected  # dropout included


def fitted(llama: Path, folder: Path) -> EncoderModule:
    module = stages.build(SimCSE, llama, chunk_tokens=64, dropout=0.1)
    (folder / "texts.txt").write_text(
        "\n".join(f"the cat saw {i} windows on the other side of the street" for i in range(16))
    )
    data = Sentences(module.tokenizer, [Source(str(folder / "texts.txt"))], global_batch_size=16, max_length=32)
    stages.trainer(folder, max_steps=1).fit(module, data)
    return module


@pytest.mark.parametrize(
    ("free", "chunks", "layers"), [(1e12, False, False), (2e6, True, False), (1e3, True, True)], ids=str
)
def test_memory_decides(
    free: float, chunks: bool, layers: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recomputing, "free_memory", lambda device, processes: free)  # the machine's is what it is
    module = fitted(tiny_llama, tmp_path)
    assert (module.recompute, module.backbone_config.activation_checkpointing) == (chunks, layers)
    assert module.encoder.backbone.lm.is_gradient_checkpointing == layers


def test_where_the_shape_is_not_known_chunks_are_computed_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> None:
        raise ValueError("no Llama")

    monkeypatch.setattr(recomputing.Shape, "from_config", unknown)
    module = fitted(tiny_llama, tmp_path)
    assert (module.recompute, module.backbone_config.activation_checkpointing) == (True, False)


def test_free_memory_of_a_cpu_is_shared() -> None:
    alone, of_four = (recomputing.free_memory(torch.device("cpu"), processes) for processes in (1, 4))
    assert of_four == pytest.approx(alone / 4, rel=0.1)
    assert alone < psutil.virtual_memory().total


def test_ranks_agree_on_the_least() -> None:
    def free() -> float:
        return distributed.least(1e9 * (3 - distributed.rank()), torch.device("cpu"))

    assert run_ranks(2, free) == [2e9, 2e9]
