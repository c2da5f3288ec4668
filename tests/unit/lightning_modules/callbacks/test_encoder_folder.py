"""The encoder at the end of a stage, and those in its checkpoints, which open and export alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs

from otherside.encoder import Encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A stage on top of another one, with a checkpoint of the user's own that watches a loss."""
    folder = tmp_path_factory.mktemp("encoder-folder")
    runs.write_data(folder, rows=40)
    runs.run("fit", "--config", runs.write_stage(folder, "MNTP", tiny_llama, root="mntp", steps=2), cwd=folder)
    mine = {"dirpath": "mine", "filename": "{step}", "monitor": "train/loss", "every_n_train_steps": 1}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": mine}]
    config = runs.write_stage(folder, "SimCSE", "mntp", root="run", steps=5, **{"trainer.callbacks": callbacks})
    runs.run("fit", "--config", config, cwd=folder)
    return folder


def test_a_checkpoint_opens_as_an_encoder(place: Path, sentences: list[str]) -> None:
    last, run = (Encoder.load(place / "run" / path) for path in ("checkpoints/step=5.ckpt", ""))
    earlier = Encoder.load(place / "run" / "checkpoints" / "step=4.ckpt")
    assert np.array_equal(last.encode(sentences), run.encode(sentences))
    assert not np.allclose(earlier.encode(sentences), run.encode(sentences), atol=1e-5)
    assert [adapter.name for adapter in earlier.backbone.lineage.adapters] == ["mntp", "simcse"]
    [mine] = (place / "mine").iterdir()
    assert f"step={json.loads((mine / 'encoder' / 'encoder.json').read_text())['steps']}.ckpt" == mine.name
    assert Encoder.load(mine).max_length == 64


def test_a_checkpoint_and_a_run_are_exported(place: Path) -> None:
    for source in ("run", "run/checkpoints/step=4.ckpt"):
        assert "vectors equal the encoder's" in runs.run("export", source, Path("out") / source, cwd=place)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_a_checkpoint_of_sharded_weights_opens_too(strategy: str, place: Path, tiny_llama: Path) -> None:
    settings = {"trainer.strategy": strategy, "model.init_args.optimizer.init_args.lr": 0.05}
    config = runs.write_stage(place, "MNTP", tiny_llama, root=strategy, steps=2, **settings)
    runs.run_ranks(2, "fit", "--config", config, cwd=place)
    vectors = [Encoder.load(place / strategy / path).encode(["a"]) for path in ("checkpoints/step=2.ckpt", "encoder")]
    assert np.array_equal(*vectors) and not np.allclose(vectors[0], Encoder.load(tiny_llama).encode(["a"]))


def test_the_encoder_is_that_of_the_best_loss(place: Path, tiny_llama: Path) -> None:
    settings = {
        "checkpoints.best": "val/loss",
        "trainer.val_check_interval": 1,
        "data.init_args.val_sources": [{"path": str(place / "pairs.jsonl")}],
        "model.init_args.optimizer.init_args.lr": 0.3,  # too high: it gets worse
    }
    config = runs.write_stage(place, "Supervised", tiny_llama, root="best", steps=5, **settings)
    output = runs.run("fit", "--config", config, cwd=place)
    [best] = (place / "best" / "best").iterdir()
    card = json.loads((place / "best" / "encoder" / "encoder.json").read_text())
    assert best.name == f"step={card['steps']}.ckpt" and card["steps"] < 5
    assert f"encoder/ is that of {best.name}: val/loss " in output
    shown = runs.run("validate", "--config", config, cwd=place)
    assert f"reads best/best/{best.name}" in shown
