"""A rank that dies, stops, hangs or fails ends the run in seconds, by name; the same command goes on without a loss."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs
from strategies import STRATEGIES

KILLS = int(os.environ.get("OTHERSIDE_KILLS", "3"))  # per strategy
STEPS = 200
EVERY_STEP = {"checkpoints.every_n_steps": 1, "model.init_args.schedule.total_steps": STEPS}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    runs.write_data(folder, rows=30)
    return folder


def command(place: Path, llama: Path, root: str, strategy: Any, stop: int, **settings: Any) -> list[str | Path]:
    options = {"trainer.strategy": strategy, "data.init_args.global_batch_size": 6, **EVERY_STEP, **settings}
    config = runs.write_stage(place, "Supervised", llama, root=root, **options)
    return ["fit", "--config", config, "--trainer.max_steps", str(stop)]


def newest(root: Path) -> int:
    """Step of the last checkpoint, by its name."""
    return max([int(path.stem.partition("=")[2]) for path in (root / "checkpoints").glob("step=*.ckpt")], default=0)


def wait_for(condition: Any, ranks: list[runs.Run], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, ranks[0].output.read_text()[-3000:]
        assert all(rank.is_running() for rank in ranks), ranks[0].output.read_text()[-3000:]
        time.sleep(0.002)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_kill_of_one_or_all_ranks_loses_nothing(strategy: str, place: Path, tiny_llama: Path) -> None:
    root, chance = place / strategy, random.Random(strategy)
    for kill in range(KILLS):
        before = newest(root)
        ranks = runs.start_ranks(2, *command(place, tiny_llama, strategy, STRATEGIES[strategy], STEPS), cwd=place)
        wait_for(lambda before=before: newest(root) > before, ranks)
        if kill == 0:  # inside a save
            wait_for(lambda: list((root / "checkpoints").glob(".step=*.tmp")), ranks)
        else:
            time.sleep(chance.uniform(0, 0.5))
        victims = chance.choice([[0], [1], [0, 1]])
        for victim in victims:
            ranks[victim].kill()
        for number, rank in enumerate(ranks):
            status, output = rank.wait(30)
            assert status == (-signal.SIGKILL if number in victims else 1), output[-3000:]
            if number not in victims:
                assert f"error: all ranks must stay in step; rank {victims[0]}" in output
    last = newest(root) + 2
    runs.run_ranks(2, *command(place, tiny_llama, strategy, STRATEGIES[strategy], last), cwd=place)
    whole = f"{strategy}-whole"
    runs.run_ranks(2, *command(place, tiny_llama, whole, STRATEGIES[strategy], last), cwd=place)
    runs.assert_equal(runs.adapter(root), runs.adapter(place / whole))


def test_a_stopped_rank_is_named(place: Path, tiny_llama: Path) -> None:
    strategy = {"class_path": "lightning_modules.strategies.DDP", "init_args": {"timeout": 12}}
    ranks = runs.start_ranks(2, *command(place, tiny_llama, "stopped", strategy, STEPS), cwd=place)
    wait_for(lambda: newest(place / "stopped") > 0, ranks)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    begun = time.monotonic()
    status, output = ranks[0].wait(40)
    ranks[1].kill()
    ranks[1].wait()
    assert status == 1
    assert "error: all ranks must stay in step; rank 1 (" in output
    assert "was lost: nothing heard of it for" in output or "kept the others waiting" in output
    assert time.monotonic() - begun < 25


def hang_in_rank_1() -> None:
    """From step 2 on rank 1 waits for something that never comes, in the middle of its loss."""
    from lightning_modules import Supervised

    loss = Supervised.loss

    def wait(self: Supervised, batch: Any) -> Any:
        while self.global_rank == 1 and self.trainer.global_step >= 2:
            time.sleep(0.1)
        return loss(self, batch)

    Supervised.loss = wait  # type: ignore[method-assign]


def test_a_hanging_rank_is_named(place: Path, tiny_llama: Path) -> None:
    strategy = {"class_path": "lightning_modules.strategies.DDP", "init_args": {"timeout": 8}}
    fit = command(place, tiny_llama, "hanging", strategy, STEPS)
    ranks = runs.start_ranks(2, *fit, cwd=place, before=hang_in_rank_1)
    status, output = ranks[0].wait(60)
    ranks[1].kill()
    ranks[1].wait()
    assert status == 1
    assert "error: all ranks must stay in step; rank 1 (" in output
    assert "kept the others waiting" in output
    assert re.search(r"no rank has moved for \d+ s: rank 1 \(", output)


def test_a_failing_rank_tells_the_others(place: Path, tiny_llama: Path) -> None:
    """One bad row, which only one rank reads."""
    rows = (place / "pairs.jsonl").read_text().splitlines()
    (place / "bad.jsonl").write_text("\n".join([*rows[:7], '{"query": "a", "positive": ""}', *rows[8:]]) + "\n")
    settings = {"data.init_args.sources": [{"path": str(place / "bad.jsonl")}]}
    ranks = runs.start_ranks(2, *command(place, tiny_llama, "failing", "ddp", STEPS, **settings), cwd=place)
    ended = [rank.wait(60) for rank in ranks]
    assert [status for status, _ in ended] == [1, 1]
    assert all("line 8" in output for _, output in ended)
