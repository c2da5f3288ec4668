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
    """(T,) float32 on the CPU: each token's share in its text's vector, summing to 1 per text.

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
    start = texts.start.minimum(texts.skip)
    if not pool_start:
        start = start * (texts.skip == texts.start) if pool_start is None else start * 0
    position, skip, lead = texts.positions, *(n.repeat_interleave(texts.lengths) for n in (texts.skip, start))
    rank = torch.where(position < skip, (position < lead).long(), position - skip + lead + 1)  # from 1; 0: not pooled
    count = texts.lengths - texts.skip + start
    if pooling == "mean":
        share, total = (rank > 0).float(), count.float()
    elif pooling == "weighted_mean":
        share, total = rank.float(), (count * (count + 1)).float() / 2
    elif pooling == "last_token":
        share, total = (rank == count.repeat_interleave(texts.lengths)).float(), torch.ones_like(count).float()
    else:
        raise ValueError(f"pooling must be mean, weighted_mean or last_token; got {pooling!r}")
    return share / total.repeat_interleave(texts.lengths)


def pool(hidden_TD: Tensor, texts: Packed, pooling: Pooling, pool_start: bool | None = True) -> Tensor:
    """(T, D) token vectors of N packed texts -> (N, D) float32.

    A product with an (N, T) matrix: unlike scattered sums, it has one order of summation on every device.
    """
    device = hidden_TD.device
    owner = torch.arange(len(texts)).repeat_interleave(texts.lengths)
    matrix_NT = torch.zeros(len(texts), len(owner), dtype=torch.float32)
    matrix_NT[owner, torch.arange(len(owner))] = weights(texts, pooling, pool_start)
    with torch.autocast(device.type, enabled=False):
        return matrix_NT.to(device, non_blocking=True) @ hidden_TD.float()
