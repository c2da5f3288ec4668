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
import torch
import torch.distributed as dist
from strategies import STRATEGIES, ZERO3

KILLS = int(os.environ.get("OTHERSIDE_KILLS", "3"))  # per strategy
STEPS = 200
WAIT = 6  # seconds that ranks wait for each other where something takes longer
SLOW = WAIT + 2
in_turn = pytest.mark.xdist_group("waits")  # these mostly wait, while another process works
EVERY_STEP = {"checkpoints.every_n_steps": 1, "model.init_args.schedule.total_steps": STEPS}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    runs.write_data(folder, rows=30)
    return folder


def command(
    place: Path, llama: Path, root: str, strategy: Any, stop: int, stage: str = "Supervised", **settings: Any
) -> list[str | Path]:
    options = {"trainer.strategy": strategy, "data.init_args.global_batch_size": 6, **EVERY_STEP, **settings}
    config = runs.write_stage(place, stage, llama, root=root, **options).rename(place / f"{root}.yaml")
    return ["fit", "--config", config, "--trainer.max_steps", str(stop)]


def waiting(strategy: str, seconds: int) -> dict[str, Any]:
    """A strategy whose ranks wait so long for each other."""
    kind = {"ddp": "DDP", "fsdp2": "FSDP2"}.get(strategy, "ZeRO")
    arguments: Any = {"zero2": {"stage": 2}, "zero3": ZERO3["init_args"]}.get(strategy, {})
    return {"class_path": f"lightning_modules.strategies.{kind}", "init_args": {**arguments, "timeout": seconds}}


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
        fit = command(place, tiny_llama, strategy, STRATEGIES[strategy], STEPS)
        ranks = runs.start_ranks(2, *fit, cwd=place, before=runs.wait_for_the_disk)
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


def write_slowly() -> None:
    from lightning_modules import checkpoints

    write = checkpoints.write_manifest

    def slowly(folder: Path, step: int) -> None:  # as a hundred gigabytes would take
        time.sleep(SLOW if step == 1 else 0)
        write(folder, step)

    checkpoints.write_manifest = slowly


@in_turn
def test_a_checkpoint_may_take_longer_than_ranks_wait(place: Path, tiny_llama: Path) -> None:
    ranks = []
    for strategy in ("ddp", "zero2"):  # both at once: they sleep most of the time
        fit = command(place, tiny_llama, f"slow-{strategy}", waiting(strategy, WAIT), 2)
        ranks += runs.start_ranks(2, *fit, cwd=place, before=write_slowly)
    runs.wait_ranks(ranks)
    assert newest(place / "slow-ddp") == newest(place / "slow-zero2") == 2


def fit_probes_slowly() -> None:
    from lightning_modules.callbacks import Probing

    fit = Probing._fit

    def slowly(self: Any, vectors: Any) -> dict[str, float]:  # as thousands of items of a large model would take
        time.sleep(0 if self._measured else SLOW)
        return fit(self, vectors)

    Probing._fit = slowly  # type: ignore[method-assign]


@in_turn
def test_probes_may_take_longer_than_ranks_wait(place: Path, tiny_llama: Path) -> None:
    settings = {"items": 20, "tasks": ["subject_animacy"], "words": [1]}
    callbacks = {"trainer.callbacks": [{"class_path": "lightning_modules.callbacks.Probing", "init_args": settings}]}
    fit = command(place, tiny_llama, "probed", waiting("ddp", WAIT), 1, **callbacks)
    runs.wait_ranks(runs.start_ranks(2, *fit, cwd=place, before=fit_probes_slowly))
    assert newest(place / "probed") == 1


def read_slowly() -> None:
    from lightning_modules import checkpoints

    check = checkpoints.check

    def slowly(folder: Path) -> int:  # as a slower disk would take
        time.sleep(SLOW if dist.is_initialized() and dist.get_rank() == 1 else 0)
        return check(folder)

    checkpoints.FolderCheckpointIO.load_checkpoint.__globals__["check"] = slowly


@in_turn
@pytest.mark.slow
def test_a_checkpoint_may_take_longer_to_read_than_ranks_wait(place: Path, tiny_llama: Path) -> None:
    for stop, before in ((1, None), (2, read_slowly)):
        ranks = []
        for strategy in ("fsdp2", "zero2"):
            fit = command(place, tiny_llama, f"read-{strategy}", waiting(strategy, WAIT), stop)
            ranks += runs.start_ranks(2, *fit, cwd=place, before=before)
        runs.wait_ranks(ranks)
    assert newest(place / "read-fsdp2") == newest(place / "read-zero2") == 2


def embed_at_their_own_pace() -> None:
    from lightning_modules.base import EncoderModule

    predict = EncoderModule.predict_step

    def slowly(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        time.sleep(5 * self.global_rank)
        return predict(self, batch, batch_idx)

    EncoderModule.predict_step = slowly  # type: ignore[method-assign]


@in_turn
def test_ranks_of_a_prediction_may_drift_apart(place: Path, tiny_llama: Path) -> None:
    few = (place / "sentences.txt").read_text().splitlines(keepends=True)[:12]  # two batches for each rank
    (place / "few.txt").write_text("".join(few))
    settings = {"data.init_args.predict_sources": [{"path": str(place / "few.txt")}]}
    _, _, config, *_ = command(place, tiny_llama, "drift", waiting("ddp", WAIT), 1, **settings)
    ranks = runs.start_ranks(2, "predict", "--config", config, cwd=place, before=embed_at_their_own_pace)
    runs.wait_ranks(ranks)
    assert (place / "drift" / "predictions.parquet").is_file()


def watch_what_lightning_does() -> None:
    """For ranks: it asks all at each batch, on the device; and it moves to the host what nobody needs any more, or what
    rank 0 alone writes.
    """
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
    from torch.utils._pytree import tree_leaves

    from lightning_modules.callbacks import EncoderFolder
    from lightning_modules.strategies import Sharded

    end, on_first = EncoderFolder.on_fit_end, Sharded.on_first

    def wait(self: Any) -> None:
        os._exit(77)

    def look(self: Any, trainer: Any, module: Any) -> None:
        assert not trainer.strategy.optimizers and all(p.grad is None for p in module.parameters())
        end(self, trainer, module)

    def copied(self: Any, values: Any) -> Any:
        assert self.is_global_zero or not any(torch.is_tensor(x) and x.ndim for x in tree_leaves(values))
        return on_first(self, values)

    Sharded.on_first = copied  # type: ignore[method-assign]
    _TrainingEpochLoop._broadcast_sigterm_tensor = wait  # type: ignore[method-assign]
    EncoderFolder.on_fit_end = look  # type: ignore[method-assign]


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_ranks_do_without_what_lightning_does_for_all(strategy: str, place: Path, tiny_llama: Path) -> None:
    fit = command(place, tiny_llama, f"spared-{strategy}", strategy, 2)
    runs.wait_ranks(runs.start_ranks(2, *fit, cwd=place, before=watch_what_lightning_does))


def write_in_vain() -> None:
    from lightning_modules import checkpoints

    def fail(folder: Path, step: int) -> None:
        raise OSError(28, "No space left on device", str(folder))

    checkpoints.write_manifest = fail


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks(place: Path, tiny_llama: Path) -> None:
    """Those who wait for it for an hour, too."""
    ranks = runs.start_ranks(2, *command(place, tiny_llama, "full", "ddp", 2), cwd=place, before=write_in_vain)
    (first, output), (second, _) = (rank.wait(60) for rank in ranks)
    assert first == second == 1
    assert "No space left on device" in output and not list((place / "full" / "checkpoints").glob("*.ckpt"))


@in_turn
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
    ago = re.search(r"rank 1 \(.*, seen (\d+) s ago in step", output)
    assert ago and int(ago[1]) >= 4, output  # it is not there that it was stopped
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


@in_turn
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


def hang_behind_the_loss_in_rank_1() -> None:
    """As `hang_in_rank_1`, but when the loss is there: what rank 0 waits in is the strategy's own work."""
    from lightning_modules import MNTP

    def wait(self: MNTP, loss: Any) -> None:
        while self.global_rank == 1 and self.trainer.global_step >= 2:
            time.sleep(0.1)

    MNTP.on_before_backward = wait  # type: ignore[method-assign]


@in_turn
def test_the_time_out_holds_in_a_strategys_own_groups(place: Path, tiny_llama: Path) -> None:
    """MNTP's backward has no collective but the strategy's. torch gives DeepSpeed's groups half an hour on gloo."""
    root = "zero2-hanging"
    fit = command(place, tiny_llama, root, waiting("zero2", 8), STEPS, stage="MNTP")
    ranks = runs.start_ranks(2, *fit, cwd=place, before=hang_behind_the_loss_in_rank_1)
    wait_for(lambda: newest(place / root) >= 2, ranks)
    try:
        status, output = ranks[0].wait(30)
    finally:
        ranks[1].kill()
        ranks[1].wait()
    assert status == 1
    assert re.search(r"error: all ranks must stay in step; rank 1 \(.*kept the others waiting", output), output[-3000:]


def start_slowly() -> None:
    """Rank 1 comes late, then rank 0 takes long to fetch the base and to read it: each longer than the time-out."""
    from lightning_modules import MNTP
    from otherside import loading, sharding
    from otherside.backbone import Backbone

    load = Backbone.load
    Backbone.load = lambda *args: [print(f"loads at {time.time():.2f}"), load(*args)][1]  # type: ignore[method-assign]

    if os.environ["RANK"] == "1":
        time.sleep(SLOW)
    else:
        read, opened, fetch = loading.base, sharding.Tensors.__init__, loading.fetch
        loading.fetch = lambda *args: [fetch(*args), time.sleep(SLOW), print(f"fetched at {time.time():.2f}")][0]
        loading.base = lambda *args: [time.sleep(SLOW), read(*args)][1]
        sharding.Tensors.__init__ = lambda *args: [time.sleep(SLOW), opened(*args)][1]  # type: ignore[method-assign]

    def say(self: MNTP, loss: Any) -> None:
        groups = dist.distributed_c10d._world.pg_map
        waits = {group._get_backend(self.device).options._timeout.total_seconds() for group in groups}
        print(f"{len(groups)} groups wait {waits}")

    MNTP.on_before_backward = say  # type: ignore[method-assign]


@in_turn
@pytest.mark.slow
def test_a_slow_start_is_waited_for(place: Path, tiny_llama: Path) -> None:
    """Longer than a hang; in training every group has the time-out."""
    strategies, ranks = ("ddp", "zero3", "fsdp2"), []
    for strategy in strategies:
        fit = command(place, tiny_llama, f"{strategy}-late", waiting(strategy, WAIT), 2, stage="MNTP")
        ranks += runs.start_ranks(2, *fit, cwd=place, before=start_slowly)
    said = [output for _, output in runs.wait_ranks(ranks)]
    for strategy, first, second in zip(strategies, said[::2], said[1::2], strict=True):
        fetched = re.search(r"fetched at (.*)", first)
        for output in (first, second):
            loads = re.search(r"loads at (.*)", output)
            assert fetched and loads and float(loads[1]) >= float(fetched[1])  # no rank is in a collective before
            assert set(re.findall(r"groups wait (.*)", output)) == {f"{{{WAIT:.1f}}}"}
            assert ("1 groups" in output) == (strategy == "ddp")


def test_a_failing_rank_tells_the_others(place: Path, tiny_llama: Path) -> None:
    """One bad row, which only one rank reads."""
    rows = (place / "pairs.jsonl").read_text().splitlines()
    (place / "bad.jsonl").write_text("\n".join([*rows[:7], '{"query": "a", "positive": ""}', *rows[8:]]) + "\n")
    settings = {"data.init_args.sources": [{"path": str(place / "bad.jsonl")}]}
    ranks = runs.start_ranks(2, *command(place, tiny_llama, "failing", "ddp", STEPS, **settings), cwd=place)
    ended = [rank.wait(60) for rank in ranks]
    assert [status for status, _ in ended] == [1, 1]
    assert all("line 8" in output for _, output in ended)


def lose_the_second_step() -> None:
    """What it computes is no number."""
    from lightning_modules import Supervised

    loss = Supervised.loss

    def broken(self: Supervised, batch: Any) -> Any:
        return loss(self, batch) * (float("nan") if self.trainer.global_step == 1 else 1)

    Supervised.loss = broken  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        *((strategy, "gradients must be finite; got inf in step 2. Lower") for strategy in ("zero2", "zero3")),
        *((strategy, "weights must be finite to be kept; 28 of 28") for strategy in ("ddp", "fsdp2")),
    ],
)
def test_a_step_that_is_no_number_ends_all_ranks(strategy: str, said: str, place: Path, tiny_llama: Path) -> None:
    """Where its loss is not looked at, too, and by what is wrong, also ranks that do not hold what is saved. DeepSpeed
    would leave the step out and go on.
    """
    root, unseen = f"{strategy}-nan", {"trainer.log_every_n_steps": 100}
    fit = command(place, tiny_llama, root, STRATEGIES[strategy], 4, **unseen)
    ranks = runs.start_ranks(2, *fit, cwd=place, before=lose_the_second_step)
    for status, output in [rank.wait(60) for rank in ranks]:
        assert status == 1 and f"error: {said}" in output, output[-3000:]
    assert newest(place / root) == 1


def test_ranks_do_not_validate_by_their_clocks(place: Path, tiny_llama: Path) -> None:
    settings = {
        "data.init_args.val_sources": [{"path": str(place / "pairs.jsonl")}],
        "trainer.val_check_interval": "00:00:00:01",
        "trainer.check_val_every_n_epoch": None,
    }
    fit = command(place, tiny_llama, "clocks", "ddp", 1, **settings)
    for status, output in [rank.wait(60) for rank in runs.start_ranks(2, *fit, cwd=place)]:
        assert status == 1
        assert "trainer.val_check_interval must be a number of batches with several ranks" in output
    runs.run(*fit, cwd=place)  # one clock is enough
