"""From token vectors to one vector per text.

Shapes: T tokens, N texts, D hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from otherside.batching import Packed

Pooling = Literal["mean", "weighted_mean", "last_token"]


def weights(texts: Packed, pooling: Pooling) -> Tensor:
    """(T,) float32 on the CPU: each token's share in its text's vector, summing to 1 per text.

    `mean`: equal; `weighted_mean`: in proportion to position, 1 for the first pooled token (Muennighoff, 2022);
    `last_token`: all on the last. Instruction tokens (`texts.skip`) have share 0.

    Raises:
        ValueError: a text has no token left to pool, or `pooling` is unknown.
    """
    if bool((texts.skip >= texts.lengths).any()):
        raise ValueError("every text needs at least one token outside its instruction to pool over")
    rank = texts.positions - texts.skip.repeat_interleave(texts.lengths) + 1  # 1 for the first pooled token
    count = texts.lengths - texts.skip
    if pooling == "mean":
        share, total = (rank > 0).float(), count.float()
    elif pooling == "weighted_mean":
        share, total = rank.clamp(min=0).float(), (count * (count + 1)).float() / 2
    elif pooling == "last_token":
        share, total = (rank == count.repeat_interleave(texts.lengths)).float(), torch.ones_like(count).float()
    else:
        raise ValueError(f"pooling must be mean, weighted_mean or last_token; got {pooling!r}")
    return share / total.repeat_interleave(texts.lengths)


def pool(hidden_TD: Tensor, texts: Packed, pooling: Pooling) -> Tensor:
    """(T, D) token vectors of N packed texts -> (N, D) float32.

    A product with an (N, T) matrix: unlike scattered sums, it has one order of summation on every device.
    """
    device = hidden_TD.device
    owner = torch.arange(len(texts)).repeat_interleave(texts.lengths)
    matrix_NT = torch.zeros(len(texts), len(owner), dtype=torch.float32)
    matrix_NT[owner, torch.arange(len(owner))] = weights(texts, pooling)
    with torch.autocast(device.type, enabled=False):
        return matrix_NT.to(device, non_blocking=True) @ hidden_TD.float()
