"""Which texts a query is told from: candidates of the contrastive loss, and what is none of a row's negatives.

Shapes: Q queries of this rank, K hard negatives of this rank, C candidates, D hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otherside import distributed
from otherside.devices import moved


def key(text: str) -> int:
    """64 bits that equal texts have in common."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass
class Marks:
    """What is known of a batch's texts beside their vectors.

    Args:
        keys: (2 Q + K,) int64, the `key` of each query, positive and hard negative, in this order.
        owners: (K,) int64, number of the query that each hard negative belongs to.
        in_batch: whether a query is told from all texts of the batch; False: from its own hard negatives only.
        scores: (Q + K,) float32, a teacher's, of each positive and hard negative with its query; None: there are none.
        labels: (2 Q + K,) int64, what each text is labelled with, by `key`; None: nothing is.
    """

    keys: Tensor
    owners: Tensor
    in_batch: bool = True
    scores: Tensor | None = None
    labels: Tensor | None = None

    @classmethod
    def of(
        cls,
        queries: Sequence[str],
        positives: Sequence[str],
        negatives: Sequence[Sequence[str]],
        in_batch: bool = True,
        scores: Sequence[Sequence[float]] | None = None,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> Marks:
        """Of texts without their instructions. `scores` are of each row's positive, then of its negatives; `labels` of
        its query, and its positive, then of its negatives.
        """
        keys = [key(text) for texts in (queries, positives, *negatives) for text in texts]
        counts = torch.tensor([len(texts) for texts in negatives], dtype=torch.int64)
        owners = torch.arange(len(queries)).repeat_interleave(counts)
        marks = cls(torch.tensor(keys, dtype=torch.int64), owners, in_batch)
        if scores is not None:
            ordered = [row[0] for row in scores] + [score for row in scores for score in row[1:]]
            marks.scores = torch.tensor(ordered, dtype=torch.float32)
        if labels is not None:
            own = [row[0] for row in labels]
            marks.labels = torch.tensor([*own, *own, *(label for row in labels for label in row[1:])])
        return marks

    def to(self, device: torch.device | str) -> Marks:
        """On another device."""
        tensors = {name: moved(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Candidates:
    """What this rank's rows are compared with.

    Args:
        vectors: (C, D).
        targets: (Q,) int64, each row's own candidate.
        left_out: (Q, C) bool, what is no negative of a row; None: all others are.
    """

    vectors: Tensor
    targets: Tensor
    left_out: Tensor | None = None

    def known(self, left_out: Tensor) -> Candidates:
        """With what is left out; never a row's target."""
        return replace(self, left_out=left_out.scatter(1, self.targets[:, None], False))


def documents(positives: Tensor, negatives: Tensor, marks: Marks | None = None) -> Candidates:
    """What queries are compared with: positives and hard negatives of all ranks, or of a query's own row.

    Of them, with `marks`, none is a negative that says the same as the query or its positive; nor, among those of all
    ranks, as another positive of the same query, wherever it stands, nor one of the same label.

    Args:
        positives: (Q, D).
        negatives: (K, D).
        marks: None: nothing is known of the texts.
    """
    mine = torch.cat([positives, negatives])
    rows = torch.arange(len(positives), device=mine.device)
    if marks is None:
        return _of_all_ranks(mine, rows)
    queries, answers, hard = marks.keys.split([len(rows), len(rows), len(negatives)])
    texts = torch.cat([answers, hard])
    if marks.in_batch:
        keys = [texts, torch.cat([queries, hard])]
        labels = [] if marks.labels is None else [marks.labels[len(rows) :]]
        return _of_all_ranks(mine, rows, queries, keys, labels)
    strange = rows[:, None] != torch.cat([rows, marks.owners])
    return Candidates(mine, rows).known(strange | (texts == queries[:, None]) | (texts == answers[:, None]))


def queries_of_all(queries: Tensor, marks: Marks | None = None) -> Candidates:
    """The same in the other direction: what positives are compared with, the queries (Q, D) of all ranks."""
    rows = torch.arange(len(queries), device=queries.device)
    if marks is None:
        return _of_all_ranks(queries, rows)
    asked, answers = marks.keys[: len(rows)], marks.keys[len(rows) : 2 * len(rows)]
    labels = [] if marks.labels is None else [marks.labels[: len(rows)]]
    return _of_all_ranks(queries, rows, answers, [asked, answers], labels)


def _of_all_ranks(
    mine: Tensor, rows: Tensor, own: Tensor | None = None, keys: Sequence[Tensor] = (), labels: Sequence[Tensor] = ()
) -> Candidates:
    """Vectors (M, D) of each rank, its rows' targets first.

    Args:
        mine: this rank's vectors.
        rows: (Q,) numbers of its rows.
        own: (Q,) keys of the rows' texts.
        keys: two of (M,), see `_same`.
        labels: none, or one of (M,).
    """
    sizes = distributed.counts(len(mine), mine.device)
    everyone = Candidates(distributed.gather(mine, sizes), rows + sum(sizes[: distributed.rank()]))
    if own is None:
        return everyone
    texts, partners, *alike = distributed.gather(torch.stack([*keys, *labels], dim=1), sizes).T.contiguous()
    left_out = _same(own, texts, partners)
    for mine_, all_ in zip(labels, alike, strict=True):
        left_out |= mine_[: len(rows), None] == all_
    return everyone.known(left_out)


def _same(own: Tensor, texts: Tensor, partners: Tensor) -> Tensor:
    """(Q, C) bool: a candidate says what the row says, or what is the target of a row that says the same.

    Args:
        own: (Q,) keys of each row's text.
        texts: (C,) keys of each candidate.
        partners: (C,) keys of the text whose target each candidate is; its own if there is none.
    """
    targets = (partners == own[:, None]).float()
    first = torch.searchsorted(texts.sort().values, texts)  # one place for all that say the same
    return (texts == own[:, None]) | (torch.zeros_like(targets).index_add_(1, first, targets)[:, first] > 0)
