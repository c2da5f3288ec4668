"""sentence-transformers' own trainer and `encode`, as its documentation has them."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from gate import SETTINGS, TASK, Gate

gate = Gate()

import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import TrainerCallback

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Trainer(SentenceTransformerTrainer):
    """Its batches in the file's order, so that all contenders see the same."""

    tokens = 0

    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
        return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.tokens = sum(int(mask.sum()) for name, mask in inputs.items() if name.endswith("attention_mask"))
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.seen = float(loss[0] if isinstance(loss, tuple) else loss)
        return loss


class Rounds(TrainerCallback):
    """A round is what lies between the ends of two steps."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        gate.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        gate.done(trainer.tokens, loss=trainer.seen)


def load() -> SentenceTransformer:
    model = SentenceTransformer(
        SETTINGS["exported"], device="cpu", model_kwargs={"dtype": getattr(torch, SETTINGS["dtype"])}
    )
    model.max_seq_length = SETTINGS["max_length"]
    return model


def contrastive() -> None:
    global trainer
    torch.manual_seed(42)
    model = load()
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=SETTINGS["dropout"], target_modules=PROJECTIONS))
    rows = [json.loads(line) for line in Path(SETTINGS["ordered_pairs"]).read_text().splitlines()]
    columns = {"anchor": [row["query"] for row in rows], "positive": [row["positive"] for row in rows]}
    cached = {"mini_batch_size": SETTINGS["mini_batch"]}
    loss = (
        CachedMultipleNegativesRankingLoss(model, scale=20, **cached)
        if SETTINGS["recompute"]
        else MultipleNegativesRankingLoss(model, scale=20)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=SETTINGS["steps"],
            per_device_train_batch_size=SETTINGS["batch"],
            learning_rate=5e-5,
            weight_decay=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[Rounds()]
        )
        trainer.train()


def encode() -> None:
    model = load()
    texts = iter(json.loads(Path(SETTINGS["texts"]).read_text()))
    model.encode(["warm"])
    gate.ready()
    while batch := list(itertools.islice(texts, SETTINGS["batch"])):
        tokens = sum(
            len(ids) for ids in model.tokenizer(batch, truncation=True, max_length=SETTINGS["max_length"])["input_ids"]
        )
        gate.begin()
        vectors = model.encode(batch, batch_size=SETTINGS["at_once"] or 32, show_progress_bar=False)
        gate.done(tokens, norm=float((vectors**2).sum() ** 0.5))


globals()[TASK]()
