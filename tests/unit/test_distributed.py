import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, run_ranks
from tiny import distance

from otherside import distributed


def test_single_process_is_the_identity():
    x = torch.randn(3, 4)
    assert distributed.world_size() == 1
    assert distributed.rank() == 0
    assert distributed.counts(3, x.device) == [3]
    assert distributed.gather(x, [3]) is x
    assert distributed.total(3, x.device).item() == 3
    assert distributed.mean(x) is x
    assert distributed.Largest()(3, x.device) == 3


def slice_of(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return rows.split(sizes)[dist.get_rank()]


@pytest.mark.parametrize("sizes", [[2, 2], [5, 3], [0, 4], [3, 0, 1]])
def test_gather_keeps_order_and_gives_every_rank_all_ranks_gradients(sizes):
    rows = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(0))
    factors = torch.arange(1.0, 1 + rows.numel()).view_as(rows)

    def gather_and_backward():
        mine = slice_of(rows, sizes).clone().requires_grad_()
        assert distributed.counts(len(mine), mine.device) == sizes
        gathered = distributed.gather(mine, sizes)
        ((dist.get_rank() + 1) * (gathered * factors).sum()).backward()  # another loss on each rank
        return gathered.detach(), mine.grad

    results = run_ranks(len(sizes), gather_and_backward)
    summed = sum(range(1, len(sizes) + 1))
    for rank, (gathered, gradient) in enumerate(results):
        assert torch.equal(gathered, rows)
        assert torch.equal(gradient, summed * factors.split(sizes)[rank])


def test_what_ranks_tell_each_other():
    def tell():
        mine, device, largest = dist.get_rank() + 1, torch.device("cpu"), distributed.Largest()
        told = [largest(number, device) for number in (0, mine, 0, 0)]
        return told, distributed.total(mine, device).item(), distributed.mean(torch.tensor(float(mine))).item()

    assert run_ranks(2, tell) == [([0, 0, 2, 0], 3, 1.5)] * 2  # of the call before


def test_gather_of_nothing_from_anyone():
    def gather():
        return distributed.gather(torch.ones(0, 3, requires_grad=True), [0, 0]).shape

    assert run_ranks(2, gather) == [(0, 3), (0, 3)]


def test_ranks_meet_though_one_takes_longer_than_collectives_may():
    def meet():
        if dist.get_rank() == 1:
            time.sleep(1)
        begun = time.monotonic()
        distributed.meet(30)
        return time.monotonic() - begun

    waited, late = run_ranks(2, meet)
    assert waited > 0.9 > late

    def meet_again():
        distributed.meet(30)
        return meet()

    waited, late = run_ranks(2, meet_again)
    assert waited > 0.9 > late
    with pytest.raises(RankError, match=r"(?i)timeout|timed out"):
        run_ranks(2, lambda: distributed.meet(0.5) if dist.get_rank() == 0 else time.sleep(2))


def test_mean_over_ranks_of_gathered_gradients_is_the_gradient_of_the_whole():
    """What the losses build on: with DDP's mean over ranks, no factor of the world size is needed."""
    rows, weight = torch.randn(6, 4), torch.randn(4, 4)

    def gradient_of(piece, sizes):
        w = weight.clone().requires_grad_()
        everything = distributed.gather(piece @ w, sizes)
        ((piece @ w) @ everything.T).square().sum().backward()
        return w.grad

    alone = gradient_of(rows, [6])
    two = run_ranks(2, lambda: gradient_of(slice_of(rows, [4, 2]), [4, 2]))
    assert distance(two[0] + two[1], alone) < 1e-6


class TestRanks:
    """The helper itself: a failed or hung rank must fail its test."""

    def test_environment_is_torchelastics(self):
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
        found = run_ranks(2, lambda: [os.environ[name] for name in names], group=False)
        assert found == [["0", "0", "2", "test"], ["1", "1", "2", "test"]]
        assert "RANK" not in os.environ

    def test_traceback_of_a_failed_rank_arrives_though_the_other_waits(self):
        def fail():
            if dist.get_rank() == 1:
                raise ValueError("rank one is out of sorts")
            dist.barrier()

        begin = time.monotonic()
        with pytest.raises(RankError, match=r"rank 1 failed(.|\n)*out of sorts"):
            run_ranks(2, fail)
        assert time.monotonic() - begin < 10

    def test_a_hung_rank_is_killed(self, tmp_path):
        def hang():
            (tmp_path / "process").write_text(str(os.getpid()))
            time.sleep(60)

        with pytest.raises(RankError, match=r"\[0\] did not end in time"):
            run_ranks(1, hang, timeout=1)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "process").read_text()), 0)
