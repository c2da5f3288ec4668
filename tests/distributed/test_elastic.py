"""A run goes on: with the same ranks bit for bit; with another number of them, or under another strategy, as if
nothing had happened.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from strategies import ADAMW, STRATEGIES, assert_same_training, train

SETTINGS = {"model.init_args.optimizer": ADAMW}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    runs.write_data(folder, rows=30)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path, tiny_llama: Path) -> Path:
    """Six steps of one process without a stop."""
    return train(place, tiny_llama, "whole", "Supervised", "auto", 1, 6, **SETTINGS)


@pytest.mark.parametrize(
    "parts",
    [
        [("zero3", 2), ("ddp", 1), ("fsdp2", 2)],
        [("fsdp2", 2), ("zero1", 1), ("zero2", 4)],
        [("ddp", 4), ("zero3", 2), ("zero3", 1)],
        [("zero2", 2), ("zero2", 1), ("zero2", 2)],
        [("fsdp2", 1), ("fsdp2", 2), ("auto", 1)],
    ],
    ids=lambda parts: "-".join(f"{strategy}x{ranks}" for strategy, ranks in parts),
)
def test_goes_on_with_other_ranks(parts: list[tuple[str, int]], place: Path, tiny_llama: Path, whole: Path) -> None:
    root = "-".join(f"{strategy}{ranks}" for strategy, ranks in parts)
    for i, (strategy, ranks) in enumerate(parts):
        found = train(place, tiny_llama, root, "Supervised", strategy, ranks, 2 * i + 2, **SETTINGS)
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


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "auto"])
def test_goes_on_with_the_same_ranks_bit_for_bit(strategy: str, place: Path, tiny_llama: Path) -> None:
    settings = {"model.init_args.lora.dropout": 0.1, **SETTINGS}
    whole = train(place, tiny_llama, f"{strategy}-whole", "Supervised", strategy, 2, 6, **settings)
    train(place, tiny_llama, f"{strategy}-cut", "Supervised", strategy, 2, 4, **settings)
    cut = train(place, tiny_llama, f"{strategy}-cut", "Supervised", strategy, 2, 6, **settings)
    runs.assert_equal(runs.adapter(cut), runs.adapter(whole))
    assert runs.metrics(cut, "train/loss") == runs.metrics(whole, "train/loss")
