"""The plan is a pure function of (seed, step), visits every row once an epoch and follows the weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from datamodules.plan import Plan, balanced, permutation_keys, permute, rank_slice


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 64, 100, 1000, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    for seed in range(3):
        image = permute(np.arange(size), size, permutation_keys(seed))
        assert sorted(image.tolist()) == list(range(size))


def test_permute_reaches_every_order_alike() -> None:
    """Of three rows there are six orders; each should come in about 200 of 1,200 draws (four standard deviations)."""
    orders = Counter(tuple(permute(np.arange(3), 3, permutation_keys(seed)).tolist()) for seed in range(1200))
    assert len(orders) == 6
    assert max(abs(count - 200) for count in orders.values()) < 4 * np.sqrt(1200 / 6 * 5 / 6)


@pytest.mark.parametrize("size", [4, 5, 16, 17])
def test_permute_sends_the_last_position_anywhere(size: int) -> None:
    """Where `size` is just beyond a power of four, a network too narrow by a bit leaves it where it is."""
    last = np.array([size - 1])
    assert {int(permute(last, size, permutation_keys(seed))[0]) for seed in range(500)} == set(range(size))


def test_permute_takes_single_positions_of_huge_ranges() -> None:
    size = 10**12
    keys = permutation_keys(0)
    alone = [int(permute(np.array([i]), size, keys)[0]) for i in range(100)]
    assert alone == permute(np.arange(100), size, keys).tolist()
    assert len(set(alone)) == 100 and max(alone) < size
    assert max(alone) > size / 2 > min(alone)


def test_each_epoch_holds_every_row_once() -> None:
    plan = Plan([23], None, global_batch_size=5, seed=1)
    batches = [plan.batch(step) for step in range(23 * 2)]
    rows = np.concatenate([batch.rows for batch in batches])
    epochs = np.concatenate([batch.epochs for batch in batches])
    assert epochs.tolist() == sorted(epochs.tolist())
    orders = []
    for epoch in range(10):
        orders.append(rows[epochs == epoch].tolist())
        assert sorted(orders[-1]) == list(range(23))
    assert orders[0] != orders[1]
    assert any(len(set(batch.epochs.tolist())) == 2 for batch in batches)  # some batch straddles two epochs


@pytest.mark.parametrize(("sizes", "size"), [([30, 50, 23], 7), ([4, 4], 4), ([1000, 5, 5, 5], 5), ([64, 128], 8)])
def test_an_epoch_of_several_sources_holds_every_row_once(sizes: list[int], size: int) -> None:
    """Only what does not fill a source's last batch is left out, and another epoch leaves out other rows."""
    plan = Plan(sizes, None, size, seed=2)
    assert plan.steps_per_epoch == sum(rows // size for rows in sizes)
    orders = []
    for epoch in range(4):
        batches = [plan.batch(epoch * plan.steps_per_epoch + step) for step in range(plan.steps_per_epoch)]
        assert {int(value) for batch in batches for value in batch.epochs} == {epoch}
        read = Counter((batch.source, row) for batch in batches for row in batch.rows.tolist())
        assert max(read.values()) == 1
        assert Counter(source for source, _ in read) == {i: rows // size * size for i, rows in enumerate(sizes)}
        orders.append([(batch.source, batch.rows.tolist()) for batch in batches])
    assert len({str(order) for order in orders}) == 4
    assert {row for order in orders for source, rows in order if source == 0 for row in rows} == set(range(sizes[0]))


def test_sources_are_mixed_within_an_epoch() -> None:
    plan = Plan([3000, 1000], None, 10, seed=0)
    found = [plan.batch(step).source for step in range(plan.steps_per_epoch)]
    quarters = [sum(found[start : start + 100]) for start in range(0, 400, 100)]
    assert sum(quarters) == 100 and all(10 < quarter < 40 for quarter in quarters)


def test_one_source_is_read_as_ever() -> None:
    """Pinned: another order would move every loss."""
    plan = Plan([23], None, 5, seed=1)
    found = [plan.batch(step) for step in (0, 4, 9)]
    assert [batch.rows.tolist() for batch in found] == [[17, 14, 3, 18, 6], [2, 11, 7, 8, 4], [0, 17, 2, 16, 19]]
    assert [batch.epochs.tolist() for batch in found] == [[0] * 5, [0, 0, 0, 1, 1], [1, 2, 2, 2, 2]]


def test_several_sources_are_read_as_ever() -> None:
    """Pinned, too."""
    mixed, weighted = Plan([30, 50, 23], None, 7, seed=1), Plan([30, 50, 20], [1, 2, 0.5], 7, seed=3)
    assert [mixed.batch(step).source for step in range(14)] == [0, 2, 1, 1, 0, 1, 2, 0, 0, 1, 2, 1, 1, 1]
    assert mixed.batch(13).rows.tolist() == [35, 19, 36, 37, 29, 16, 27]
    assert [weighted.batch(step).source for step in range(70_000, 70_009)] == [0, 1, 0, 1, 0, 1, 1, 2, 1]
    assert weighted.batch(70_000).rows.tolist() == [7, 21, 18, 10, 3, 4, 27]


def test_a_plan_stores_nothing() -> None:
    import tracemalloc

    plan = Plan([2**40, 2**33 + 1], None, global_batch_size=4, seed=0)
    tracemalloc.start()
    batch = plan.batch(10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(batch.rows.tolist())) == 4 and peak < 1_000_000


@pytest.mark.parametrize("weights", [None, [1, 2, 0.5]])
def test_any_step_may_be_asked_first(weights: list[float] | None) -> None:
    plan = Plan([30, 50, 20], weights, global_batch_size=7, seed=3)
    steps = [*range(40), 65_600, 131_100]  # and of later blocks of quotas
    forward = {step: plan.batch(step) for step in steps}
    for step in (39, 0, 17, 65_600, 131_100):
        batch = Plan([30, 50, 20], weights, global_batch_size=7, seed=3).batch(step)
        assert batch.source == forward[step].source
        assert batch.rows.tolist() == forward[step].rows.tolist()


def test_seed_and_sizes_change_the_plan() -> None:
    first = Plan([1000], None, 8, seed=0).batch(0).rows.tolist()
    assert first != Plan([1000], None, 8, seed=1).batch(0).rows.tolist()
    assert first == Plan([1000], None, 8, seed=0).batch(0).rows.tolist()


def test_sources_go_on_where_they_stopped_over_quota_blocks() -> None:
    """The count of earlier batches of a source is arithmetic; here it is counted."""
    plan = Plan([10**6, 3 * 10**6], [1, 3], global_batch_size=2, seed=0)
    seen: Counter[int] = Counter()
    for step in range(65_000, 66_000):  # the first block ends at 65,536
        source, first = plan._by_weight(step)
        seen.setdefault(source, first // 2)
        assert first == 2 * seen[source]
        seen[source] += 1
    assert sum(seen.values()) == 66_000


def test_far_steps_are_exact() -> None:
    plan = Plan([2**40, 2**33 + 1], [1, 1], global_batch_size=4096, seed=0)
    batch = plan.batch(10**9)
    assert batch.rows.dtype == np.int64
    assert len(set(batch.rows.tolist())) == 4096
    assert batch.rows.min() >= 0 and batch.rows.max() < plan.sizes[batch.source]
    assert (plan.row_ids(batch) >= 0).all()


@pytest.mark.parametrize("weights", [None, [1, 3, 6], [0.2, 0.2, 0.6]])
def test_mix_follows_the_weights(weights: list[float] | None) -> None:
    sizes = [100, 200, 700]
    plan = Plan(sizes, weights, global_batch_size=10, seed=5)
    counts = Counter(plan.batch(step).source for step in range(2000))
    shares = np.array(weights or sizes) / np.sum(weights or sizes)
    drawn = np.array([counts[source] for source in range(3)]) / 2000
    assert np.abs(drawn - shares).max() < 4 * np.sqrt(0.25 / 2000)


def test_the_smallest_weight_is_read_once_a_block() -> None:
    plan = Plan([10, 10], [1, 1e-9], global_batch_size=10, seed=0)
    assert sum(plan._by_weight(step)[0] for step in range(65_537)) == 1


def test_row_ids_are_unique() -> None:
    plan = Plan([12, 20], None, global_batch_size=4, seed=0)
    ids: list[int] = []
    keys = set()
    for step in range(60):
        batch = plan.batch(step)
        ids += plan.row_ids(batch).tolist()
        keys |= {(batch.source, *pair) for pair in zip(batch.epochs.tolist(), batch.rows.tolist(), strict=True)}
    assert len(set(ids)) == len(ids) == len(keys)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_share_the_global_batch(world_size: int) -> None:
    rows = Plan([50], None, global_batch_size=7, seed=0).batch(3).rows
    parts = [rank_slice(rows, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "world_size"), [(7, 1), (7, 3), (5, 5), (64, 8), (66, 8)])
def test_balanced_is_an_order(count: int, world_size: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 100, count)
    assert sorted(balanced(sizes, world_size).tolist()) == list(range(count))


def test_balanced_ranks_hold_as_much() -> None:
    """Eight ranks of 64 texts, lengths as texts have them; without it the fullest holds a fifth more than the mean."""
    random = np.random.default_rng(0)
    for _ in range(10):
        sizes = np.minimum(np.exp(random.normal(4, 1, 512)).astype(int) + 3, 512)
        dealt = sizes[balanced(sizes, 8)]
        sums = [rank_slice(dealt, rank, 8).sum() for rank in range(8)]
        assert max(sums) < 1.002 * np.mean(sums)


def test_refuses_less_than_a_row_a_rank() -> None:
    with pytest.raises(ValueError, match=r"each of the 4 ranks; got 3 rows.*global_batch_size"):
        rank_slice(np.arange(3), 0, 4)


@pytest.mark.parametrize(
    ("sizes", "weights", "batch", "message"),
    [
        ([10, 3], None, 4, "smallest source, 3; got 4. Lower global_batch_size"),
        ([10], [0.0], 4, "weight must be a positive number"),
        ([10, 10], [1.0, float("nan")], 4, "weight must be a positive number"),
        ([10, 10], [1.0], 4, "one weight a source"),
        ([], None, 4, "one weight a source"),
        ([10], None, 0, "between 1 and"),
    ],
)
def test_refuses(sizes: list[int], weights: list[float] | None, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(sizes, weights, batch, seed=0)
