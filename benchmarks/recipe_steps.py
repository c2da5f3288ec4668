"""Training steps as the published recipes have them, with random tokens: what `dry_gpu.py` and `gpu.py` run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedTokenizerFast

from lightning_modules import callbacks
from lightning_modules.base import EncoderModule
from lightning_modules.contrastive import SimCSE, Supervised
from lightning_modules.mntp import MNTP
from otherside.batching import Packed, PairBatch, TextBatch, Tokens
from otherside.candidates import Marks

SHAPES = Path(__file__).parent / "shapes"
STAGES: dict[str, type[EncoderModule]] = {"mntp": MNTP, "simcse": SimCSE, "supervised": Supervised}
REFERENCE = "sheared-llama-1.3b"


@dataclass
class Job:
    """What a step trains, and how.

    Args:
        stage: mntp, simcse or supervised.
        shape: a folder in `shapes`.
        lengths: of a step's texts, in tokens.
        chunk_tokens: see `EncoderModule`.
        recompute: see `EncoderModule`.
        backbone: settings of `BackboneConfig`.
        teacher: supervised: kind of loss by a teacher's scores, if any.
    """

    stage: str
    shape: str
    lengths: list[int]
    chunk_tokens: int | None = None
    recompute: bool = True
    backbone: dict[str, Any] = field(default_factory=dict)
    teacher: Literal["kl", "margin"] | None = None

    def batch(self, step: int, vocabulary: int) -> TextBatch | PairBatch:
        """As a loader's worker makes it. Supervised: a third queries, a third positives, a third negatives."""
        draw = random.Random(step)
        tokens = [Tokens([0, *(draw.randrange(3, vocabulary) for _ in range(n - 1))], 1, 1) for n in self.lengths]
        texts = Packed.from_tokens(tokens)
        if self.stage == "supervised":
            pairs, names = len(tokens) // 3, [str(i) for i in range(len(tokens))]
            hard = [[name] for name in names[2 * pairs :]]
            scores = [[draw.random() for _ in range(2)] for _ in hard] if self.teacher else None
            marks = Marks.of(names[:pairs], names[pairs : 2 * pairs], hard, scores=scores)
            return PairBatch(step, texts, pairs, marks)
        return TextBatch(step, texts, torch.arange(len(tokens)) + step * len(tokens))


def base(folder: Path, shape: str, layers: int) -> Any:
    """Config and tokenizer of a base model in `folder`, without weights; the config."""
    config = AutoConfig.from_pretrained(SHAPES / shape)
    config.num_hidden_layers = layers
    config.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<s>": 0, "_": 1, "a": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    return config


def published(stage: str, shape: str) -> Job:
    """A rank's step as the configs of that shape have it: mntp and simcse on one GPU, supervised on eight."""
    draw, reference = random.Random(0), shape == REFERENCE
    if stage == "mntp":
        return Job(stage, shape, [512] * 32)
    if stage == "simcse":
        lengths = [draw.randint(8, 60) for _ in range(128)]
        return Job(stage, shape, lengths, 16384 if reference else 4096, backbone={"attention_dropout": 0.3})
    lengths = [draw.randint(15, 60) for _ in range(64)] + [draw.randint(40, 250) for _ in range(128)]
    return Job(stage, shape, lengths, 24576 if reference else 8192)


def loop(folder: Path, steps: int, watching: Sequence[pl.Callback] = (), **where: Any) -> pl.Trainer:
    """Lightning's, as a run on one device has it; the last step logs.

    Args:
        folder: for what it writes.
        steps: of training.
        watching: callbacks of a benchmark.
        where: the device, as settings of `Trainer`.
    """
    return pl.Trainer(
        **where,
        callbacks=[*watching, callbacks.ProgressLines(), callbacks.Throughput(), callbacks.Requeue()],
        max_steps=steps,
        log_every_n_steps=steps,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=folder,
    )
