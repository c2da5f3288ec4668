"""Exact nearest neighbours in blocks: memory for one block of documents, however many there are.

Shapes: Q queries, N documents, K neighbours, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Nearest:
    """The K best documents of each query among those seen so far.

    Args:
        queries: (Q, D).
        count: K.
        left_out: (M, 2) int64, query and document that are not to be found together.
    """

    def __init__(self, queries: Tensor, count: int, left_out: Tensor) -> None:
        self.queries, self.count = queries, count
        self._left_out = left_out.to(queries.device)
        self.scores = queries.new_full((len(queries), 0), 0.0)
        self.places = torch.zeros((len(queries), 0), dtype=torch.int64, device=queries.device)

    def see(self, documents: Tensor, first: int) -> None:
        """Compare with documents (B, D), whose numbers begin at `first`."""
        scores = self.queries @ documents.T
        query, place = self._left_out.T
        here = (place >= first) & (place < first + len(documents))
        scores[query[here], place[here] - first] = float("-inf")
        best, places = scores.topk(min(self.count, len(documents)), dim=1)
        scores, places = torch.cat([self.scores, best], 1), torch.cat([self.places, places + first], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self.count]
        self.scores, self.places = scores.gather(1, order), places.gather(1, order)


def nearest(
    queries: Tensor, blocks: Iterable[Tensor], count: int, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores (inner products) and numbers of each query's best documents, best first: (Q, K) float32 and int64.

    K is at most the number of documents; a document that is left out has a score of -inf.

    Args:
        queries: (Q, D).
        blocks: of documents, (B, D) each, one after the other.
        count: K.
        left_out: see `Nearest`.
    """
    none = torch.zeros((0, 2), dtype=torch.int64)
    found, first = Nearest(queries, count, none if left_out is None else left_out), 0
    for block in blocks:
        found.see(block.to(queries.device), first)
        first += len(block)
    return found.scores, found.places
