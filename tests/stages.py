"""Stages built in the test's own process, around the tiny Llama of `conftest.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from runs import OBJECTS, SUBJECTS, VERBS
from tiny import train_a_little

from datamodules import Pairs, Sentences, Source
from lightning_modules.base import EncoderModule
from lightning_modules.contrastive import SimCSE
from lightning_modules.mntp import MNTP, MaskedBatch
from otherside import mntp
from otherside.adapters import Lora
from otherside.backbone import BackboneConfig
from otherside.batching import Packed, PairBatch, TextBatch
from otherside.candidates import Marks
from otherside.tokenising import tokenise

Stage = TypeVar("Stage", bound=EncoderModule)
TEXTS = [f"{s} {v} {o}" for s, v, o in zip(SUBJECTS, VERBS, OBJECTS * 2, strict=False)]
TEXTS[3] += ", and then " + TEXTS[5]  # of different lengths


def build(
    stage: type[Stage], llama: Path, *, dropout: float = 0.0, attention_dropout: float = 0.0, **options: Any
) -> Stage:
    """A stage with an adapter that does something, in training mode. SimCSE's dropout is on attention, too."""
    attention_dropout = attention_dropout or (dropout if stage is SimCSE else 0.0)
    backbone = BackboneConfig(str(llama), dtype="float32", attention_dropout=attention_dropout)
    module = stage(backbone=backbone, lora=Lora(r=4, dropout=dropout), max_length=64, **options)
    module.configure_model()
    train_a_little(module)
    return module.train()


def texts(module: EncoderModule, chosen: list[str] = TEXTS) -> TextBatch:
    packed = Packed.from_tokens(tokenise(module.tokenizer, chosen, 64))
    return TextBatch(0, packed, torch.arange(len(chosen)))


def pairs(module: EncoderModule, negatives: int = 5) -> PairBatch:
    """Three pairs and so many hard negatives, which need not be a multiple of three."""
    chosen = [text.split()[0] + " " + text.split()[-1] for text in TEXTS[:3]] + TEXTS[:3] + TEXTS[3:][:negatives]
    marks = Marks.of(chosen[:3], chosen[3:6], [chosen[6:], [], []])
    return PairBatch(0, Packed.from_tokens(tokenise(module.tokenizer, chosen, 64)), 3, marks)


def batch(module: EncoderModule) -> Any:
    """What the stage reads."""
    if module.stage == "supervised":
        return pairs(module)
    read = texts(module)
    if not isinstance(module, MNTP):
        return read
    vocabulary = module.tokenizer.vocab_size
    masked, labels = mntp.mask(read.texts, read.rows, module.masking, module.mask_id, vocabulary, module.seed)
    return MaskedBatch(0, masked, labels)


def data(module: EncoderModule, file: Path, **options: Any) -> Sentences | Pairs:
    """A data module over one file; `val_sources` and `predict_sources` are that file, too."""
    kind = Pairs if file.suffix == ".jsonl" else Sentences
    sources = [Source(str(file))]
    settings = {"global_batch_size": 8, "max_length": 32, "num_workers": 0, **options}
    return kind(module.tokenizer, sources, sources, sources, **settings)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """On one CPU, silent, writing nothing."""
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    settings = {**silent, "use_distributed_sampler": False, "log_every_n_steps": 1, **options}
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=list(callbacks), **settings)
