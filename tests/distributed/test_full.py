"""Full fine-tuning in whole runs: behind other stages, tied weights; cut and gone on with; killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from conftest import build_tiny_llama
from strategies import ADAMW, FROZEN, FULL, STRATEGIES, assert_same_training, train

from lightning_modules.checkpoints import newest
from otherside.lineage import SINK, Card


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    runs.write_data(folder, rows=30)
    return folder


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
@pytest.mark.parametrize("later", ["full", "frozen", "lora"])
def test_stages_before_are_merged_into_shards(later: str, strategy: str, place: Path, tiny_llama: Path) -> None:
    """An adapter, then all weights, then a stage on top of both."""
    first, second = place / "first", place / "second"
    if not second.exists():
        train(place, tiny_llama, "first", "MNTP", "auto", 1)
        train(place, first / "encoder", "second", "Supervised", "auto", 1, **FULL)
    settings = {"full": FULL, "frozen": FROZEN, "lora": {}}[later]
    one = place / f"{later}-third-one"
    if not one.exists():
        train(place, second / "encoder", one.name, "Supervised", "auto", 1, **settings)
    found = train(place, second / "encoder", f"{later}-third-{strategy}", "Supervised", strategy, 2, **settings)
    assert_same_training(found, one)
    stages = Card.read(found / "encoder").lineage.adapters
    assert [stage.name for stage in stages] == ["mntp", "supervised", "supervised"]
    kept = {"full": [False, False, True], "frozen": [False, True, True], "lora": [False, True, True]}[later]
    assert [stage.folder is not None for stage in stages] == kept


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_tied_embeddings_are_trained_once_and_keep_their_sink(strategy: str, place: Path) -> None:
    """In MNTP gradients come from both ends; the start token enters otherwise."""
    llama = build_tiny_llama(place / f"tied-{strategy}", tied=True, sink=True)
    one = train(place, llama, f"tied-{strategy}-one", "MNTP", "auto", 1, **FULL)
    two = train(place, llama, f"tied-{strategy}-two", "MNTP", strategy, 2, **FULL)
    assert_same_training(two, one, norm=5e-6)  # the sink's large states leave it fewer digits; weights agree to 1e-7
    assert "model.embed_tokens.weight" in runs.adapter(one)
    assert (one / "encoder" / SINK).read_bytes() == (two / "encoder" / SINK).read_bytes()


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_the_base_keeps_its_type(strategy: str, place: Path, tiny_llama: Path) -> None:
    """In bfloat16 what is trained is float32 all the same, and the first loss that of one process."""
    settings = {**FULL, "model.init_args.backbone.dtype": "bfloat16", "model.init_args.frozen_layers": 1}
    ddp = place / "half-ddp"
    if not ddp.exists():
        train(place, tiny_llama, ddp.name, "Supervised", "ddp", 2, **settings)
    found = train(place, tiny_llama, f"half-{strategy}", "Supervised", strategy, 2, **settings)
    one, other = runs.metrics(found, "train/loss"), runs.metrics(ddp, "train/loss")
    assert one[0] == other[0]
    assert max(abs(one[step] / other[step] - 1) for step in other) < 1e-2
    assert {weight.dtype for weight in runs.adapter(found).values()} == {torch.float32}


@pytest.mark.parametrize(
    "parts",
    [[("zero3", 2), ("ddp", 1), ("fsdp2", 2)], [("fsdp2", 2), ("zero1", 1), ("zero2", 4)]],
    ids=lambda parts: "-".join(f"{strategy}x{ranks}" for strategy, ranks in parts),
)
def test_goes_on_with_other_ranks(parts: list[tuple[str, int]], place: Path, tiny_llama: Path) -> None:
    settings = {**FULL, "model.init_args.optimizer": ADAMW}
    whole = place / "elastic-whole"
    if not whole.exists():
        train(place, tiny_llama, whole.name, "Supervised", "auto", 1, 6, **settings)
    root = "-".join(f"{strategy}{ranks}" for strategy, ranks in parts)
    for i, (strategy, ranks) in enumerate(parts):
        found = train(place, tiny_llama, root, "Supervised", strategy, ranks, 2 * i + 2, **settings)
    assert_same_training(found, whole)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "auto"])
def test_goes_on_with_the_same_ranks_bit_for_bit(strategy: str, place: Path, tiny_llama: Path) -> None:
    settings = {**FULL, "model.init_args.optimizer": ADAMW, "model.init_args.backbone.attention_dropout": 0.1}
    whole = train(place, tiny_llama, f"{strategy}-whole", "Supervised", strategy, 2, 6, **settings)
    train(place, tiny_llama, f"{strategy}-cut", "Supervised", strategy, 2, 4, **settings)
    cut = train(place, tiny_llama, f"{strategy}-cut", "Supervised", strategy, 2, 6, **settings)
    runs.assert_equal(runs.adapter(cut), runs.adapter(whole))


def test_kill_9_and_the_same_command_again(place: Path, tiny_llama: Path) -> None:
    """Inside a save: what is half written is no checkpoint, and the end is the uninterrupted run's, bit for bit."""
    slow = {"trainer.callbacks": [{"class_path": "pace.Pace", "init_args": {"seconds": 0.05, "skew": 0.0}}]}
    settings = {**FULL, "checkpoints.every_n_steps": 1, **slow}

    def command(root: str) -> tuple[Any, ...]:
        stage = runs.write_stage(place, "MNTP", tiny_llama, root=root, steps=12, **settings)
        return ("fit", "--config", stage)

    whole, root = place / "unkilled", place / "killed"
    runs.run(*command(str(whole)), cwd=place)
    for kill in range(2):
        run = runs.start(*command(str(root)), cwd=place)
        deadline = time.monotonic() + 60
        while len(list((root / "checkpoints").glob("step=*.ckpt"))) < 2 or not list(
            (root / "checkpoints").glob(".step=*.tmp")
        ):
            assert run.is_running() and time.monotonic() < deadline, run.wait(0)
        run.kill()
        assert run.wait()[0] == -9
        found = newest(root / "checkpoints")
        assert found and (kill == 0 or found.name != "step=0.ckpt")
    runs.run(*command(str(root)), cwd=place)
    runs.assert_equal(runs.adapter(root), runs.adapter(whole))
