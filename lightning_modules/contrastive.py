"""Stages `simcse` and `supervised`: contrastive learning, unsupervised and with labelled pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalMRR
from typing_extensions import override

from lightning_modules.base import EncoderModule
from otherside.batching import PairBatch, TextBatch
from otherside.candidates import documents
from otherside.losses import InfoNCE


def check_candidates(data: Any, loss: InfoNCE) -> None:
    """Raise a ValueError if a loss would be 0 at every step: there is nothing to tell a positive from, or to distil."""
    sources = [*getattr(data, "sources", []), *getattr(data, "val_sources", [])]
    if loss.symmetric and (alone := [str(source) for source in sources if not source.in_batch]):
        raise ValueError(
            "loss.symmetric must be false where sources have in_batch: false, as it tells queries from each other; got "
            f"true, and {alone[0]}. Set loss.symmetric: false."
        )
    if getattr(data, "global_batch_size", 2) < 2 and getattr(data, "negatives", 0) == 0:
        raise ValueError(
            "data.global_batch_size must be at least 2 for a contrastive stage without hard negatives, whose negatives "
            f"are the other texts of the batch; got {data.global_batch_size}. Raise data.global_batch_size."
        )
    trained = getattr(data, "sources", [])  # none where someone's own loader has the batches
    if loss.teacher and trained and not any(source.scores for source in trained):
        raise ValueError(
            "loss.teacher must have scores to learn; got no training source with scores: true. Set it where rows have "
            "scores (`lightning mine` writes them), or loss.teacher: null."
        )
    if loss.teacher and getattr(data, "negatives", None) == 0:
        raise ValueError(
            "data.negatives must be at least 1, or null for all, with loss.teacher, which is about a row's hard "
            "negatives; got 0. Raise it, or set loss.teacher: null."
        )


class SimCSE(EncoderModule):
    """Unsupervised contrastive learning: the same sentence twice, dropout differs (Gao et al., 2021).

    Llama has no dropout of its own: the two views differ by `backbone.attention_dropout`. `lora.dropout` alone is not
    enough, as an adapter that changes nothing yet has nothing to drop.

    Args:
        loss: InfoNCE, cross-entropy of each text's positive against all other texts of the global batch.
        kwargs: see `EncoderModule`.
    """

    stage, views = "simcse", 2
    rescales = True

    def __init__(self, loss: InfoNCE = InfoNCE(), **kwargs: Any) -> None:  # noqa: B008
        super().__init__(**kwargs)
        if not self.backbone_config.attention_dropout:
            raise ValueError(
                "SimCSE needs backbone.attention_dropout above 0, or both views of a sentence are the same, as a new "
                "adapter, whatever its lora.dropout, changes nothing yet; got 0. The published value is 0.3."
            )
        self.info_nce = loss

    @override
    def on_fit_start(self) -> None:
        check_candidates(self.trainer.datamodule, self.info_nce)  # type: ignore[attr-defined]
        super().on_fit_start()

    @override
    def loss(self, batch: TextBatch) -> Tensor:
        first, second = self.embed(self.cut(batch).chunks).chunk(2)
        return self.info_nce(first, second, negatives=first[:0])

    @override
    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """With dropout, the same at every validation: without, the two views would be one, and the loss say nothing."""
        self.encoder.train()
        self.seed_step(batch_idx)
        super().validation_step(batch, batch_idx)


class Supervised(EncoderModule):
    """Contrastive learning on (query, positive, hard negatives).

    Negatives are all other texts of the batch or, for sources with `in_batch: false`, a query's own hard negatives
    only. Texts that a batch has twice are no negatives of themselves, nor are the other positives of the same query.

    Args:
        loss: InfoNCE, cross-entropy of each query's positive against its candidates.
        kwargs: see `EncoderModule`.
    """

    stage = "supervised"
    rescales = True

    def __init__(self, loss: InfoNCE = InfoNCE(), **kwargs: Any) -> None:  # noqa: B008
        super().__init__(**kwargs)
        self.info_nce = loss
        self.mrr = RetrievalMRR()

    @override
    def on_fit_start(self) -> None:
        check_candidates(self.trainer.datamodule, self.info_nce)  # type: ignore[attr-defined]
        super().on_fit_start()

    @override
    def loss(self, batch: PairBatch) -> Tensor:
        queries, positives, negatives = self._roles(batch)
        return self.info_nce(queries, positives, negatives, batch.marks)

    def _roles(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        vectors = self.embed(self.cut(batch).chunks)
        queries, positives, negatives = vectors.split([batch.pairs, batch.pairs, len(batch.texts) - 2 * batch.pairs])
        return queries, positives, negatives

    @override
    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Loss, and the mean reciprocal rank of each query's positive among its candidates."""
        queries, positives, negatives = self._roles(batch)
        self._log_validation(self.info_nce(queries, positives, negatives, batch.marks), batch)
        queries, positives, negatives = (normalize(vectors, dim=1) for vectors in (queries, positives, negatives))
        found = documents(positives, negatives, batch.marks)
        cosines = queries @ found.vectors.T
        assert found.left_out is not None
        taken = ~found.left_out
        wanted = torch.zeros_like(taken).scatter(1, found.targets[:, None], True)
        rows = torch.arange(len(queries), device=self.device)
        owner = rows[:, None].expand_as(cosines) + (batch_idx * self.trainer.world_size + self.global_rank) * 10**6
        self.mrr.update(cosines[taken], wanted[taken], indexes=owner[taken])
        self.log("val/mrr", self.mrr, on_epoch=True, prog_bar=True, batch_size=batch.pairs)
