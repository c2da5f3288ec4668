"""Stage `mntp`: masked next token prediction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import EncoderModule
from otherside import mntp
from otherside.batching import Batch, Chunks, Packed, TextBatch
from otherside.devices import moved
from otherside.mntp import Masking
from otherside.tokenizer import special_ids


@dataclass
class MaskedBatch(Batch):
    """Texts with tokens hidden.

    Args:
        labels: (T,) on the CPU: the hidden token's id, -100 elsewhere.
        predicting: of each chunk, where the states are that predict its hidden tokens; see `mntp.predicting`.
        targets: (M,) ids of the hidden tokens, chunk by chunk.
    """

    labels: Tensor
    predicting: list[Tensor] = field(default_factory=list, kw_only=True)
    targets: Tensor = field(default=None, kw_only=True)  # type: ignore[assignment]

    @override
    def cut(self, budget: int | None, views: int = 1, padded: bool = True) -> MaskedBatch:
        if self.chunks is not None:
            return self
        hidden = Chunks.of(replace(self.texts, input_ids=self.labels), budget, padded)
        labels = [part.input_ids for part in hidden.parts]
        together = torch.cat(labels)
        where = [mntp.predicting(part) for part in labels]
        return replace(super().cut(budget, padded=padded), predicting=where, targets=together[together != -100])

    @override
    def to(self, device: torch.device | str) -> MaskedBatch:
        where = [moved(part, device) for part in self.predicting]
        return replace(super().to(device), predicting=where, targets=moved(self.targets, device))


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
    def configure_model(self) -> None:
        super().configure_model()
        self.encoder.backbone.check_head("MNTP")

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, TextBatch) and not self.trainer.predicting:
            known = (self.masking, self.mask_id, self.tokenizer.vocab_size, self.seed, self.special)
            batch = MaskedBatch(batch.step, *mntp.mask(batch.texts, batch.rows, *known))
        return super().on_before_batch_transfer(batch, dataloader_idx)

    @override
    def loss(self, batch: MaskedBatch) -> Tensor:
        batch, backbone = self.cut(batch), self.encoder.backbone

        def states(chunk: tuple[Packed, Tensor]) -> Tensor:
            texts, where = chunk
            return backbone(texts)[where]

        chunks = list(zip(batch.chunks.parts, batch.predicting, strict=True))
        found = torch.cat(self.in_chunks(batch.chunks.parts, chunks, states))
        return mntp.loss(found, batch.targets, backbone.logits, in_step=self._shard is not None)
