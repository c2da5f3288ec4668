"""Search in blocks against sorting everything."""

import pytest
import torch

from otherside.search import nearest


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 3, 7, 50])
@pytest.mark.parametrize("count", [1, 5, 23, 99])
def test_blocks_find_what_sorting_all_finds(block: int, count: int) -> None:
    queries, documents = vectors(6, 0), vectors(23, 1)
    scores, places = nearest(queries, documents.split(block), count)
    expected = (queries @ documents.T).sort(dim=1, descending=True)
    assert places.equal(expected.indices[:, :count])
    assert torch.allclose(scores, expected.values[:, :count])


@pytest.mark.parametrize("block", [1, 4, 50])
def test_what_is_left_out_is_never_among_the_others(block: int) -> None:
    queries, documents = vectors(3, 0), vectors(10, 1)
    best = (queries @ documents.T).argsort(dim=1, descending=True)
    left_out = torch.tensor([[0, best[0, 0]], [0, best[0, 3]], [2, best[2, 1]]])
    scores, places = nearest(queries, documents.split(block), 10, left_out)
    for row, gone in enumerate([{0, 3}, set(), {1}]):
        kept = [int(best[row, i]) for i in range(10) if i not in gone]
        assert places[row, : len(kept)].tolist() == kept
        assert torch.isinf(scores[row, len(kept) :]).all() and torch.isfinite(scores[row, : len(kept)]).all()
