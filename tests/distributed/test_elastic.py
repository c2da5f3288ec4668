"""A run goes on: with the same ranks bit for bit; with another number of them, or under another strategy, as if
nothing had happened.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import runs
from conftest import build_tiny_llama
from strategies import ADAMW, FULL, STRATEGIES, assert_same_training, once, train

from lightning_modules.finished import NOTE
from otherside.lineage import ENCODER

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"model.init_args.optimizer": ADAMW},
    "full": {"model.init_args.optimizer": ADAMW, **FULL},
}
DROPOUT = {
    "lora": {"model.init_args.lora.dropout": 0.1},
    "full": {"model.init_args.backbone.attention_dropout": 0.1},
}
PARTS = [
    [("zero3", 2), ("ddp", 1), ("fsdp2", 2)],
    [("fsdp2", 2), ("zero1", 1), ("zero2", 4)],
    [("ddp", 4), ("zero3", 2), ("zero3", 1)],
    [("zero2", 2), ("zero2", 1), ("zero2", 2)],
    [("fsdp2", 1), ("fsdp2", 2), ("auto", 1)],
    [("zero3", 2), ("zero3", 3), ("fsdp2", 3)],  # three ranks share no weight evenly
]
SAME = {"lora": [name for name in STRATEGIES if name != "auto"], "full": ["zero2", "zero3", "fsdp2"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    runs.write_data(folder, rows=30)
    return folder


@pytest.mark.parametrize(
    ("trained", "parts"),
    [*(("lora", parts) for parts in PARTS), *(("full", parts) for parts in PARTS[:2])],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{name}x{ranks}" for name, ranks in value),
)
def test_goes_on_with_other_ranks(trained: str, parts: list[tuple[str, int]], place: Path, tiny_llama: Path) -> None:
    whole = once(place, tiny_llama, f"{trained}-whole", "Supervised", "auto", 1, 6, **SETTINGS[trained])
    root = "-".join([trained, *(f"{strategy}{ranks}" for strategy, ranks in parts)])
    for i, (strategy, ranks) in enumerate(parts):
        found = train(place, tiny_llama, root, "Supervised", strategy, ranks, 2 * i + 2, **SETTINGS[trained])
    assert_same_training(found, whole)


def test_what_has_ended_on_two_ranks_is_told_on_two_ranks(place: Path, tiny_llama: Path) -> None:
    """Ended, cut by max_time, or changed: each rank leaves with the status of one process."""
    settings = {"trainer.callbacks": [{"class_path": "pace.Pace", "init_args": {"seconds": 0.3, "skew": 0.1}}]}
    config = runs.write_stage(place, "Supervised", tiny_llama, root="told", **{"trainer.strategy": "ddp", **settings})
    for options, status, said in (
        (("--trainer.max_time", "00:00:00:01"), 124, "stopped by trainer.max_time at step "),
        ((), 0, "step 6/6"),
        ((), 0, "told is finished after 6 steps"),
        (("--model.lora.alpha", "9"), 1, "error: told is finished and must stay what it is"),
    ):
        ended = [rank.wait(60) for rank in runs.start_ranks(2, "fit", "--config", config, *options, cwd=place)]
        assert [found for found, _ in ended] == [status] * 2, ended[0][1][-3000:]
        assert said in ended[0][1]


@pytest.mark.parametrize(
    ("trained", "strategy"), [(trained, strategy) for trained in SAME for strategy in SAME[trained]]
)
def test_goes_on_with_the_same_ranks_bit_for_bit(trained: str, strategy: str, place: Path, tiny_llama: Path) -> None:
    how = (place, tiny_llama, f"{trained}-{strategy}", "Supervised", strategy, 2, 6)
    assert_goes_on_bit_for_bit(*how, **SETTINGS[trained], **DROPOUT[trained])


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_tied_embeddings_go_on_as_they_were_trained(strategy: str, place: Path) -> None:
    """Though the test of the model's logits, before the checkpoint is read, leaves FSDP2 with a whole copy of them."""
    llama = place / f"tied-{strategy}"
    build_tiny_llama(llama, tied=True)
    root = assert_goes_on_bit_for_bit(place, llama, f"tied-{strategy}-run", "MNTP", strategy, 2, 4, **SETTINGS["full"])
    assert "model.embed_tokens.weight" in runs.adapter(root)


def assert_goes_on_bit_for_bit(
    place: Path, llama: Path, root: str, stage: str, strategy: str, ranks: int, last: int, **settings: Any
) -> Path:
    """A whole run; then again from its checkpoint before the last one, as if it had been killed behind that."""
    how = (place, llama, root, stage, strategy, ranks, last)
    run = train(*how, **settings)
    weights, losses = runs.adapter(run), runs.metrics(run, "train/loss")
    for left in (run / "checkpoints" / f"step={last}.ckpt", run / ENCODER):
        shutil.rmtree(left)
    (run / NOTE).unlink()
    train(*how, **settings)
    runs.assert_equal(runs.adapter(run), weights)
    assert runs.metrics(run, "train/loss") == losses
    shutil.rmtree(run / "csv" / "version_0")
    assert min(runs.metrics(run, "train/loss")) >= last - 2  # it went on, and did not begin anew
    return run
