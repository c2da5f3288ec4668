"""Our own rounds: real training runs of Lightning with our modules, and `Encoder.encode`."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from gate import SETTINGS, TASK, Gate

gate = Gate()

import lightning.pytorch as pl
import torch

from datamodules import Blocks, Pairs, Sentences, Source
from lightning_modules import MNTP, Supervised
from lightning_modules.hardware import peak
from lightning_modules.sizing.shape import Shape
from lightning_modules.sizing.speed import of_texts
from otherside import backbone, dropout
from otherside.adapters import Lora
from otherside.backbone import BackboneConfig
from otherside.encoder import Encoder
from otherside.losses import InfoNCE

if SETTINGS.get("plain"):
    dropout.dropout = torch.nn.functional.dropout
    backbone.rounded = lambda n: n


class Rounds(pl.Callback):
    """A round is what lies between the ends of two steps."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        lm = pl_module.encoder.backbone.lm
        self.shape = Shape.from_config(lm.config.to_dict(), "the model")
        self.adapter = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        gate.ready(peak=peak(pl_module.device, lm.dtype))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        lengths = batch.texts.lengths
        tokens, squares = int(lengths.sum()), int((lengths**2).sum())
        needed = of_texts(self.shape, self.adapter, tokens, squares, pl_module.predicted)
        gate.done(tokens, loss=outputs["loss"].item(), operations=needed)


def train(module: Any, data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_steps=SETTINGS["steps"],
            callbacks=[Rounds()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)


def common() -> dict[str, Any]:
    return {
        "backbone": BackboneConfig(
            SETTINGS["model"], dtype=SETTINGS["dtype"], kernel="sdpa" if SETTINGS.get("plain") else "auto"
        ),
        "lora": Lora(r=16, alpha=32, dropout=SETTINGS["dropout"]),
        "chunk_tokens": SETTINGS["chunk_tokens"],
        "recompute": SETTINGS["recompute"],
    }


def contrastive() -> None:
    module = Supervised(loss=InfoNCE(scale=20), **common())
    data = Pairs(
        module.tokenizer,
        [Source(SETTINGS["pairs"])],
        global_batch_size=SETTINGS["batch"],
        max_length=SETTINGS["max_length"],
        num_workers=0,
    )
    train(module, data)


def mntp() -> None:
    module = MNTP(**common())
    kind = Sentences if SETTINGS["lines"] else Blocks
    data = kind(
        module.tokenizer,
        [Source(SETTINGS["texts"])],
        global_batch_size=SETTINGS["batch"],
        max_length=SETTINGS["max_length"],
        num_workers=0,
    )
    train(module, data)


def encode() -> None:
    encoder = Encoder.load(SETTINGS["model"], dtype=SETTINGS["dtype"], max_length=SETTINGS["max_length"])
    texts = iter(json.loads(Path(SETTINGS["texts"]).read_text()))
    with torch.no_grad():
        encoder.encode(["warm"])
    gate.ready()
    while batch := list(itertools.islice(texts, SETTINGS["batch"])):
        tokens = sum(
            len(ids)
            for ids in encoder.tokenizer(batch, truncation=True, max_length=SETTINGS["max_length"])["input_ids"]
        )
        gate.begin()
        vectors = encoder.encode(batch, batch_size=SETTINGS["at_once"])
        gate.done(tokens, norm=float((vectors**2).sum() ** 0.5))


globals()[TASK]()
