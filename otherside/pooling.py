"""From token vectors to one vector per text.

Shapes: T tokens, N texts, D hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from otherside.batching import Packed

Pooling = Literal["mean", "weighted_mean", "last_token"]


def weights(texts: Packed, pooling: Pooling, pool_start: bool | None = True) -> Tensor:
    """(T,) float32 where the tokens are: each token's share in its text's vector, summing to 1 per text.

    `mean`: equal; `weighted_mean`: in proportion to position, 1 for the first pooled token (Muennighoff, 2022);
    `last_token`: all on the last. Tokens of an instruction have share 0.

    Args:
        texts: N texts.
        pooling: one of the three.
        pool_start: whether the start token is pooled like a token of the text. None: where there is no instruction, as
            encoder folders of format 1 were trained.

    Raises:
        ValueError: a text has no token left to pool, or `pooling` is unknown.
    """
    if bool((texts.skip >= texts.lengths).any()):
        raise ValueError("every text needs at least one token outside its instruction to pool over")
    lengths, skip, start = texts.sizes
    start = start.minimum(skip)
    if not pool_start:
        start = start * (skip == texts.sizes[2]) if pool_start is None else start * 0
    count = lengths - skip + start
    position, (skip, lead) = texts.positions, (n[texts.owners] for n in (skip, start))
    rank = torch.where(position < skip, (position < lead).long(), position - skip + lead + 1)  # from 1; 0: not pooled
    if pooling == "mean":
        share, total = (rank > 0).float(), count.float()
    elif pooling == "weighted_mean":
        share, total = rank.float(), (count * (count + 1)).float() / 2
    elif pooling == "last_token":
        share, total = (rank == count[texts.owners]).float(), torch.ones_like(count).float()
    else:
        raise ValueError(f"pooling must be mean, weighted_mean or last_token; got {pooling!r}")
    return share / total[texts.owners]


def pool(hidden_TD: Tensor, texts: Packed, pooling: Pooling, pool_start: bool | None = True) -> Tensor:
    """(T, D) token vectors of N packed texts -> (N, D) float32.

    A product with an (N, T) matrix: unlike scattered sums, it has one order of summation on every device.
    """
    shares = weights(texts, pooling, pool_start)
    matrix_NT = shares.new_zeros(len(texts), len(shares)).scatter_(0, texts.owners[None], shares[None])
    with torch.autocast(hidden_TD.device.type, enabled=False):
        return matrix_NT @ hidden_TD.float()
