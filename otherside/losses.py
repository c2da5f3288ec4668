"""Contrastive losses on gathered vectors.

Shapes: Q queries of this rank, C candidates of all ranks, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from otherside import distributed


@dataclass
class InfoNCE:
    """Cross-entropy of each query's positive against all candidates of the global batch (van den Oord et al., 2018).

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

    def __call__(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Loss of this rank; its mean over ranks is the global batch's mean over queries, whatever the split.

        Args:
            queries: (Q, D).
            positives: (Q, D), row i belongs to query i.
            negatives: (K, D) hard negatives of this rank's queries; candidates for all queries. K may be 0.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: a Matryoshka size is larger than D.
        """
        if any(k > queries.shape[1] for k in self.matryoshka):
            raise ValueError(
                f"loss.matryoshka must not exceed the hidden size {queries.shape[1]}; got {max(self.matryoshka)}"
            )
        queries, positives, negatives = (_normalised(vectors) for vectors in (queries, positives, negatives))
        mine = torch.cat([positives, negatives])
        sizes = distributed.counts(len(mine), mine.device)
        candidates = distributed.gather(mine, sizes)  # of unit length already: their number grows with the ranks
        counts = distributed.counts(len(queries), queries.device) if self.symmetric else []
        everyone = distributed.gather(queries, counts) if self.symmetric else None
        rank = distributed.rank()
        widths = [k for k in self.matryoshka if k < queries.shape[1]] + [queries.shape[1]]
        losses = []
        for k in widths:
            losses.append(self._rows(queries, candidates, sum(sizes[:rank]), k))
            if everyone is not None:
                losses.append(self._rows(positives, everyone, sum(counts[:rank]), k))
        share = distributed.world_size() / distributed.total(len(queries), queries.device)  # DDP takes ranks' mean
        return torch.stack(losses).mean() * share

    def _rows(self, rows: Tensor, candidates: Tensor, offset: int, width: int) -> Tensor:
        """Summed loss of this rank's rows, first `width` dimensions; row i's positive is candidate `offset + i`."""
        if width < rows.shape[1]:
            rows, candidates = _normalised(rows[:, :width]), _normalised(candidates[:, :width])
        with torch.autocast(rows.device.type, enabled=False):
            cosines = rows @ candidates.T
        target = torch.arange(len(rows), device=rows.device) + offset
        logits = cosines * self.scale
        if self.false_negative_margin is not None:
            limit = cosines.gather(1, target[:, None]) - self.false_negative_margin
            suspect = (cosines > limit).scatter(1, target[:, None], False)
            logits = logits.masked_fill(suspect, float("-inf"))
        return F.cross_entropy(logits, target, reduction="sum")


def _normalised(vectors: Tensor) -> Tensor:
    """Of unit length, in float32."""
    return F.normalize(vectors.float(), dim=1)  # autocast lowers none of it
