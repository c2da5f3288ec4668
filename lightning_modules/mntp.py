"""Stage `mntp`: masked next token prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import EncoderModule
from otherside import mntp
from otherside.batching import Packed, TextBatch
from otherside.mntp import Masking
from otherside.tokenizer import special_ids


@dataclass
class MaskedBatch:
    """Texts with tokens hidden, and (T,) labels: the hidden token's id, -100 elsewhere."""

    step: int
    texts: Packed
    labels: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskedBatch:
        """Token ids and labels on `device`."""
        return replace(
            self, texts=self.texts.to(device, non_blocking), labels=self.labels.to(device, non_blocking=non_blocking)
        )


class MNTP(EncoderModule):
    """Teaches a Llama to use the other side: hidden tokens are predicted from both sides (LLM2Vec's first stage).

    Args:
        masking: how tokens are hidden.
        kwargs: see `EncoderModule`.
    """

    stage = "mntp"

    def __init__(self, masking: Masking = Masking(), **kwargs: Any) -> None:  # noqa: B008
        super().__init__(**kwargs)
        self.masking, self.predicted = masking, masking.probability
        self.mask_id = masking.token_id(self.tokenizer)
        self.special = special_ids(self.tokenizer)

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, TextBatch) or self.trainer.predicting:
            return batch
        texts, labels = mntp.mask(
            batch.texts,
            batch.rows,
            self.masking,
            self.mask_id,
            self.tokenizer.vocab_size,
            self.seed,
            self.special,
        )
        return MaskedBatch(batch.step, texts, labels)

    @override
    def loss(self, batch: MaskedBatch) -> Tensor:
        texts, labels = batch.texts, replace(batch.texts, input_ids=batch.labels)
        backbone, chunks = self.encoder.backbone, batch.texts.chunks(self.chunk_tokens)

        def states(chunk: Tensor) -> Tensor:
            return mntp.predicting(backbone(texts.select(chunk)), labels.select(chunk).input_ids)

        targets = torch.cat([labels.select(chunk).input_ids for chunk in chunks])
        return mntp.loss(torch.cat(self.in_chunks(chunks, states)), targets[targets != -100], backbone.logits)
