"""Masked next token prediction: hide tokens, predict token i from the hidden state of token i - 1.

Source: BehnamGhader et al., 2024 (LLM2Vec). Shapes: T tokens, M masked tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otherside import distributed
from otherside.batching import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Masking:
    """How tokens are hidden.

    Args:
        probability: share of tokens to predict, drawn one by one.
        scheme: `standard` replaces 80 % of them by the mask token, 10 % by a random token and keeps 10 %
            (Devlin et al., 2019); `all` replaces all.
        token: written in place of a hidden token; must be one token of the vocabulary. `_` as published: Llama has no
            mask token.
    """

    probability: float = 0.2
    scheme: Literal["standard", "all"] = "standard"
    token: str = "_"

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"masking.probability must lie between 0 and 1; got {self.probability}")
        if self.scheme not in ("standard", "all"):
            raise ValueError(f"masking.scheme must be standard or all; got {self.scheme!r}")

    def token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Id of the mask token.

        Raises:
            ValueError: it is not exactly one token.
        """
        ids = tokenizer.encode(self.token, add_special_tokens=False)
        known = tokenizer.get_vocab().get(self.token)
        if known is not None:
            return known
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"masking.token must be one token of the vocabulary; {self.token!r} is "
                f"{'unknown' if len(ids) == 1 else f'{len(ids)} tokens'} here. "
                "Choose another, such as '_'."
            )
        return ids[0]


def mask(
    texts: Packed,
    rows: Tensor,
    masking: Masking,
    mask_id: int,
    vocabulary: int,
    seed: int,
    special: Sequence[int] = (),
) -> tuple[Packed, Tensor]:
    """Hide tokens; what is hidden depends only on (seed, row), not on batch, rank or worker.

    Never hidden are special tokens, such as the start token, and the first token of a text, which nothing precedes to
    predict it from. Every text with another token has at least one hidden.

    Args:
        texts: N texts.
        rows: (N,) numbers that are the texts' own.
        masking: how.
        mask_id: from `Masking.token_id`.
        vocabulary: random replacements are drawn below this.
        seed: of the run.
        special: ids of tokens that stand for no text.

    Returns:
        The texts with tokens replaced, and (T,) int64 labels: the hidden token's id, -100 elsewhere.
    """
    ids = texts.input_ids.numpy().copy()
    labels = np.full_like(ids, -100)
    free = ~np.isin(ids, np.asarray(special, ids.dtype))
    borders = texts.borders.tolist()
    for row, start, end in zip(rows.tolist(), borders[:-1], borders[1:], strict=True):
        allowed = free[start + 1 : end]
        if not allowed.any():
            continue
        random = np.random.Generator(np.random.Philox(key=[seed, row]))
        body = ids[start + 1 : end]
        draw = random.random(len(body))
        hidden = (draw < masking.probability) & allowed
        hidden[np.where(allowed, draw, 1).argmin()] = True
        labels[start + 1 : end][hidden] = body[hidden]
        kind = random.random(len(body))
        noise = random.integers(vocabulary, size=len(body))
        if masking.scheme == "all":
            body[hidden] = mask_id
        else:
            body[hidden & (kind < 0.8)] = mask_id
            swapped = hidden & (kind >= 0.8) & (kind < 0.9)
            body[swapped] = noise[swapped]
    return replace(texts, input_ids=torch.from_numpy(ids)), torch.from_numpy(labels)


def predicting(labels: Tensor) -> Tensor:
    """(M,) int64: where the states stand that predict the hidden tokens, one position before them. For the CPU: how
    many there are would be asked of a GPU.

    Args:
        labels: (T,) from `mask`.
    """
    return (labels != -100).nonzero().squeeze(1) - 1


def loss(
    states_MD: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int = 1024, in_step: bool = True
) -> Tensor:
    """Mean cross-entropy over the hidden tokens of the global batch; this rank's part of it (mean over ranks).

    The head runs on masked positions only, `chunk` of them at a time, recomputed in backward where there is more than
    one chunk: never more than (chunk, V) logits at once.

    Args:
        states_MD: (M, D) hidden states at `predicting`.
        targets: (M,) ids of the hidden tokens.
        head: hidden states to (M, V) logits.
        chunk: positions at once.
        in_step: all ranks run the head equally often, as they must where its weights are sharded; for that they wait
            for each other.

    Returns:
        A float32 scalar.
    """
    longest = distributed.most(len(targets), targets.device) if in_step else len(targets)
    chunks = -(-longest // chunk)
    if chunks <= 1:
        summed = _summed(states_MD, targets, head)
    else:
        parts = zip(states_MD.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
        summed = torch.stack([checkpoint(_summed, s, t, head, use_reentrant=False) for s, t in parts]).sum()
    return summed * distributed.world_size() / distributed.total(len(targets), targets.device).clamp(min=1)


def _summed(states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    return F.cross_entropy(head(states).float(), targets, reduction="sum")
