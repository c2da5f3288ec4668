"""Contrastive losses on gathered vectors.

Shapes: Q queries and K hard negatives of this rank, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from otherside import distributed
from otherside.candidates import Candidates, Marks, documents, queries_of_all


@dataclass
class InfoNCE:
    """Cross-entropy of each query's positive against its candidates (van den Oord et al., 2018).

    Args:
        scale: cosine similarities are multiplied by this (1 / temperature): 20 is a temperature of 0.05.
        symmetric: also predict each positive's query among all queries; the mean of both directions.
        matryoshka: also apply the loss to the first k dimensions, for each k here; the mean over all sizes
            (Kusupati et al., 2022). Empty: full vectors only.
        false_negative_margin: leave out candidates that are closer to the query than its positive's cosine minus this
            margin: probably unlabelled positives. None: keep all.
    """

    scale: float = 20.0
    symmetric: bool = False
    matryoshka: tuple[int, ...] = ()
    false_negative_margin: float | None = None

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"loss.scale must be positive; got {self.scale}. It is 1 / temperature.")
        if any(k < 1 for k in self.matryoshka):
            raise ValueError(f"loss.matryoshka must hold sizes of at least 1; got {self.matryoshka}")

    def __call__(self, queries: Tensor, positives: Tensor, negatives: Tensor, marks: Marks | None = None) -> Tensor:
        """Loss of this rank; its mean over ranks is the global batch's mean over queries, whatever the split.

        Args:
            queries: (Q, D).
            positives: (Q, D), row i belongs to query i.
            negatives: (K, D) hard negatives of this rank's queries. K may be 0.
            marks: which texts are the same, and whether only a query's own hard negatives count. None: all texts
                differ, and all of the global batch are candidates of every query.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: a Matryoshka size is larger than D.
        """
        if any(k > queries.shape[1] for k in self.matryoshka):
            raise ValueError(
                f"loss.matryoshka must not exceed the hidden size {queries.shape[1]}; got {max(self.matryoshka)}"
            )
        # of unit length before they are gathered: their number grows with the ranks
        queries, positives, negatives = (_normalised(vectors) for vectors in (queries, positives, negatives))
        directions = [(queries, documents(positives, negatives, marks))]
        if self.symmetric:
            directions.append((positives, queries_of_all(queries, marks)))
        widths = [k for k in self.matryoshka if k < queries.shape[1]] + [queries.shape[1]]
        losses = [self._rows(*direction, width) for width in widths for direction in directions]
        share = distributed.world_size() / distributed.total(len(queries), queries.device)  # DDP takes ranks' mean
        return torch.stack(losses).mean() * share

    def _rows(self, rows: Tensor, candidates: Candidates, width: int) -> Tensor:
        """Summed loss of this rank's rows, first `width` dimensions."""
        vectors, targets = candidates.vectors, candidates.targets
        if width < rows.shape[1]:
            rows, vectors = _normalised(rows[:, :width]), _normalised(vectors[:, :width])
        with torch.autocast(rows.device.type, enabled=False):
            cosines = rows @ vectors.T
        logits = cosines * self.scale
        if candidates.left_out is not None:
            logits.masked_fill_(candidates.left_out, float("-inf"))
        if self.false_negative_margin is not None:
            limit = cosines.gather(1, targets[:, None]) - self.false_negative_margin
            suspect = (cosines > limit).scatter(1, targets[:, None], False)
            logits.masked_fill_(suspect, float("-inf"))
        return F.cross_entropy(logits, targets, reduction="sum")


def _normalised(vectors: Tensor) -> Tensor:
    """Of unit length, in float32."""
    return F.normalize(vectors.float(), dim=1)  # autocast lowers none of it
