"""Encoder folders to export, and how vectors are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.encoder import Encoder
from otherside.lineage import AUTO, Training
from otherside.pooling import Pooling
from otherside.tokenizer import load_tokenizer

TEXTS = ["The cat sat on the mat.", "Rain.", "A dog barked at the postman all morning long, as dogs do."]

PROMPTS = {"query": "Given a question, find its answer (C++/\\d*)?; ", "document": ""}


def trained(
    base: Path,
    folder: Path,
    pooling: Pooling = "mean",
    attention: str = "bidirectional",
    pool_start: bool = True,
    start_token: str | None = AUTO,
) -> str:
    """An encoder folder whose adapter is random."""
    config = BackboneConfig(str(base), attention=attention, dtype="float32")  # type: ignore[arg-type]
    backbone = Backbone.load(config, Lora(r=4))
    torch.manual_seed(1)
    for name, parameter in backbone.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tokenizer = load_tokenizer(str(base), start_token=start_token)
    return str(Encoder(backbone, tokenizer, pooling, 64, pool_start).save(folder, "mntp"))


def with_history(folder: str, prompts: dict[str, str], dimensions: tuple[int, ...] = ()) -> str:
    """An encoder folder that says how it was trained."""
    encoder = Encoder.load(folder)
    encoder.history = (Training("mntp", 3, ("texts.txt",), prompts, dimensions),)
    return str(encoder.save(folder, "mntp"))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())
