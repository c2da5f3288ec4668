"""Contrastive losses on gathered vectors.

Shapes: Q queries and K hard negatives of this rank, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from otherside import distributed
from otherside.candidates import Candidates, Marks, documents, queries_of_all


@dataclass
class Distillation:
    """A teacher's scores of each query's own positive and hard negatives, which cosines shall follow.

    A row without hard negatives adds 0, and false_negative_margin leaves out none of them.

    Args:
        weight: of this loss beside InfoNCE, to which it is added.
        kind: "kl" is the divergence of the softmax of cosines times loss.scale from the softmax of scores (as in
            FlagEmbedding). "margin" is the squared error of how much nearer than each negative the positive is, in
            cosines against scores as they are, which must be like cosines (Hofstätter et al., 2020).
        temperature: of "kl", which divides the teacher's scores. 0.05 is for cosines; a cross-encoder's logits want 1.
    """

    weight: float = 1.0
    kind: Literal["kl", "margin"] = "kl"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"loss.teacher.{name} must be positive; got {value}")

    def __call__(self, cosines: Tensor, scores: Tensor, left_out: Tensor, scale: float) -> Tensor:
        """Summed loss of Q rows, of which row i's positive is candidate i.

        Args:
            cosines: (Q, C) float32.
            scores: (C,) the teacher's, of each candidate with the one query whose it is.
            left_out: (Q, C) bool, what is neither a row's positive nor its own negative.
            scale: of cosines.
        """
        if self.kind == "kl":
            logits = (cosines * scale, scores / self.temperature)
            student, teacher = (F.log_softmax(x.masked_fill(left_out, float("-inf")), dim=1) for x in logits)
            return (teacher.exp() * (teacher - student).masked_fill(left_out, 0)).sum()
        margins, wanted = (x.diagonal()[:, None] - x for x in (cosines, scores.expand_as(cosines)))
        negatives = (~left_out).sum(1) - 1  # all but the positive, whose error is 0
        return ((margins - wanted).square().masked_fill(left_out, 0).sum(1) / negatives.clamp(min=1)).sum()


@dataclass
class InfoNCE:
    """Cross-entropy of each query's positive against its candidates (van den Oord et al., 2018).

    Args:
        scale: cosine similarities are multiplied by this (1 / temperature): 20 is a temperature of 0.05.
        symmetric: also predict each positive's query among all queries; the mean of both directions.
        matryoshka: also apply the loss to the first k dimensions, for each k here; the mean over all sizes
            (Kusupati et al., 2022). Empty: full vectors only.
        false_negative_margin: leave out candidates that are closer to the query than its positive's cosine minus this
            margin, which is at most 0: probably unlabelled positives. -0.1 leaves out what is nearer by more than 0.1
            (as Qwen3-Embedding). Batches of sources with `in_batch: false` keep all. None: keep all.
        teacher: also learn the scores of a teacher, in batches of sources with `scores: true`. None: learn none.
    """

    scale: float = 20.0
    symmetric: bool = False
    matryoshka: tuple[int, ...] = ()
    false_negative_margin: float | None = None
    teacher: Distillation | None = None

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"loss.scale must be positive; got {self.scale}. It is 1 / temperature.")
        if any(k < 1 for k in self.matryoshka):
            raise ValueError(f"loss.matryoshka must hold sizes of at least 1; got {self.matryoshka}")
        if self.false_negative_margin is not None and self.false_negative_margin > 0:
            raise ValueError(
                "loss.false_negative_margin must be at most 0, or an encoder whose vectors are all the same would have "
                f"no loss; got {self.false_negative_margin}. -0.1 leaves out what is nearer than the positive by more."
            )

    def __call__(self, queries: Tensor, positives: Tensor, negatives: Tensor, marks: Marks | None = None) -> Tensor:
        """Loss of this rank; its mean over ranks is the global batch's mean over queries, whatever the split.

        Args:
            queries: (Q, D).
            positives: (Q, D), row i belongs to query i.
            negatives: (K, D) hard negatives of this rank's queries. K may be 0.
            marks: which texts are the same, whether only a query's own hard negatives count, and a teacher's scores.
                None: all texts differ, and all of the global batch are candidates of every query.

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
        margin = self.false_negative_margin if marks is None or marks.in_batch else None  # own negatives are known ones
        losses = [self._rows(*direction, width, margin) for width in widths for direction in directions]
        loss = torch.stack(losses).mean()
        if self.teacher and marks and marks.scores is not None:
            own = documents(positives, negatives, replace(marks, in_batch=False))
            assert own.left_out is not None
            found = [_cosines(queries, own.vectors, width) for width in widths]
            taught = [self.teacher(cosines, marks.scores, own.left_out, self.scale) for cosines in found]
            loss = loss + self.teacher.weight * torch.stack(taught).mean()
        share = distributed.world_size() / distributed.total(len(queries), queries.device)  # DDP takes ranks' mean
        return loss * share

    def _rows(self, rows: Tensor, candidates: Candidates, width: int, margin: float | None) -> Tensor:
        """Summed loss of this rank's rows, first `width` dimensions."""
        cosines, targets = _cosines(rows, candidates.vectors, width), candidates.targets
        logits = cosines * self.scale
        if candidates.left_out is not None:
            logits.masked_fill_(candidates.left_out, float("-inf"))
        if margin is not None:
            limit = cosines.gather(1, targets[:, None]) - margin
            suspect = (cosines > limit).scatter(1, targets[:, None], False)
            logits.masked_fill_(suspect, float("-inf"))
        return F.cross_entropy(logits, targets, reduction="sum")


def _cosines(rows: Tensor, others: Tensor, width: int) -> Tensor:
    """(Q, C) of vectors of unit length, by their first `width` dimensions."""
    if width < rows.shape[1]:
        rows, others = _normalised(rows[:, :width]), _normalised(others[:, :width])
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ others.T


def _normalised(vectors: Tensor) -> Tensor:
    """Of unit length, in float32."""
    return F.normalize(vectors.float(), dim=1)  # autocast lowers none of it
