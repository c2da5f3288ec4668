"""QLoRA in whole runs: cut and gone on with; refused where weights are shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from strategies import ADAMW, NF4, assert_same_training, differences, train

from otherside.lineage import Card


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    runs.write_data(folder, rows=30)
    return folder


def test_goes_on_with_the_same_ranks_bit_for_bit(place: Path, tiny_llama: Path) -> None:
    """With dropout; a checkpoint holds the adapter alone."""
    settings = {**NF4, "model.init_args.optimizer": ADAMW, "model.init_args.lora": {"r": 4, "dropout": 0.1}}
    whole = train(place, tiny_llama, "whole", "Supervised", "zero2", 2, 6, **settings)
    train(place, tiny_llama, "cut", "Supervised", "zero2", 2, 4, **settings)
    cut = train(place, tiny_llama, "cut", "Supervised", "zero2", 2, 6, **settings)
    runs.assert_equal(runs.adapter(cut), runs.adapter(whole))
    assert all("lora_" in name for name in runs.adapter(whole))


def test_a_stage_is_watched_while_it_trains(place: Path, tiny_llama_sink: Path) -> None:
    """With its sink, rescaled vectors and dropout; and the next stage starts from it."""
    probing = {"every_n_steps": 2, "generation": str(place / "sentences.txt"), "items": 20}
    callbacks = [{"class_path": "lightning_modules.callbacks.Probing", "init_args": probing}]
    found = train(place, tiny_llama_sink, "watched", "SimCSE", "auto", 1, **NF4, **{"trainer.callbacks": callbacks})
    assert min(runs.metrics(found, "probe/perplexity").values()) > 1
    card = Card.read(found / "encoder")
    assert card.sink and card.rescale
    later = train(place, found / "encoder", "later", "Supervised", "auto", 1, **NF4)
    assert [stage.kind for stage in Card.read(later / "encoder").lineage.adapters] == ["adapter", "adapter"]


def test_goes_on_with_other_ranks(place: Path, tiny_llama: Path) -> None:
    settings = {**NF4, "model.init_args.optimizer": ADAMW}
    whole = train(place, tiny_llama, "elastic-whole", "Supervised", "auto", 1, 4, **settings)
    train(place, tiny_llama, "elastic", "Supervised", "zero2", 2, 2, **settings)
    assert_same_training(train(place, tiny_llama, "elastic", "Supervised", "auto", 1, 4, **settings), whole)
    plain = train(place, tiny_llama, "plain", "Supervised", "auto", 1, 4, **{**settings, **{key: None for key in NF4}})
    assert differences(plain, whole)["train/loss"] > 1e-3, "the base was rounded"
