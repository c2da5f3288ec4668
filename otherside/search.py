"""Exact nearest neighbours in blocks: memory for one block of documents, however many there are.

Shapes: Q queries, N documents, K neighbours, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def nearest(
    queries: Tensor, blocks: Iterable[Tensor], count: int, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores (inner products) and numbers of each query's best documents, best first: (Q, K) float32 and int64.

    K is at most the number of documents; a document that is left out has a score of -inf.

    Args:
        queries: (Q, D).
        blocks: of documents, (B, D) each, one after the other.
        count: K.
        left_out: (M, 2) int64, query and document that are not to be found together.
    """
    device, first = queries.device, 0
    query, place = torch.zeros((2, 0), dtype=torch.int64) if left_out is None else left_out.to(device).T
    scores = queries.new_zeros((len(queries), 0))
    places = torch.zeros((len(queries), 0), dtype=torch.int64, device=device)
    for block in blocks:
        found = queries @ block.to(device).T
        here = (place >= first) & (place < first + len(block))
        found[query[here], place[here] - first] = float("-inf")
        best, numbers = found.topk(min(count, len(block)), dim=1)
        scores, places = torch.cat([scores, best], 1), torch.cat([places, numbers + first], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
        scores, places, first = scores.gather(1, order), places.gather(1, order), first + len(block)
    return scores, places
