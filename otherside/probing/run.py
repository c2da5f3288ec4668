"""`lightning probe`: measure every variant, keep what is measured, write the report."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from otherside.backbone import Attention, Backbone, BackboneConfig, DTypes, load_tokenizer
from otherside.encoder import Encoder
from otherside.lineage import Card, Lineage, sha256
from otherside.probing.features import word_vectors
from otherside.probing.probes import accuracy_by_word
from otherside.probing.report import Result, atomic, tables, write_report
from otherside.probing.retrieval import Pair, read_pairs
from otherside.probing.retrieval import retrieval as measure_retrieval
from otherside.probing.templates import LENGTH, TASKS, Sentences, sentences

VERSION = 1  # raise it when the same settings would measure something else: it renames what is cached
VARIANTS = "variants"


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: an encoder folder, or a base model untrained.

    Args:
        name: in tables and figures.
        model: encoder folder, or the base model's address.
        card: of the folder; for an untrained base a card of what it is run as.
    """

    name: str
    model: str
    card: Card

    def open(self, dtype: DTypes, device: str) -> Encoder:
        """Load it."""
        card = self.card
        attention: Attention = "causal" if card.attention == "causal" else "bidirectional"
        config = BackboneConfig(self.model, card.lineage.revision, attention, dtype)
        tokenizer = load_tokenizer(self.model, card.lineage.revision)
        encoder = Encoder(Backbone.load(config), tokenizer, card.pooling, card.max_length)  # type: ignore[arg-type]
        return encoder.to(device).eval()

    def settings(self) -> dict[str, Any]:
        """All of the variant that its results depend on."""
        card = self.card
        return {
            "base": card.lineage.base,
            "revision": card.lineage.revision,
            "fingerprint": card.lineage.fingerprint,
            "adapters": [adapter.sha256 for adapter in card.lineage.adapters],
            "attention": card.attention,
            "pooling": card.pooling,
            "max_length": card.max_length,
        }


def run_probe(
    encoders: list[str],
    out: Path,
    *,
    baselines: bool = True,
    retrieval: Path | None = None,
    dtype: DTypes = "bfloat16",
    device: str = "auto",
    train: int = 600,
    test: int = 400,
    seed: int = 0,
) -> list[Result]:
    """Measure every variant and write the report; what `otherside.probing.probe` does.

    Args:
        encoders: see `probe`; also `out`, `baselines`, `retrieval`, `dtype` and `device`.
        out: see `probe`.
        baselines: see `probe`.
        retrieval: see `probe`.
        dtype: see `probe`.
        device: see `probe`.
        train: probing sentences to train on.
        test: probing sentences to test on.
        seed: of the probing sentences.

    Raises:
        FileNotFoundError: no such encoder folder or retrieval file.
        ValueError: no encoders; a folder that is no encoder; with baselines, encoders of several bases; a broken line
            in the retrieval file.
    """
    variants = find_variants(encoders, baselines)
    pairs = read_pairs(retrieval) if retrieval else None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    file = sha256(retrieval) if retrieval else None
    measured = {"version": VERSION, "dtype": dtype, "sentences": [train, test, seed], "retrieval": file}
    data = sentences(train, test, seed)
    (out / VARIANTS).mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()  # one bar at a time
    work = train + test + (2 * len(pairs) if pairs else 0)
    results = []
    with tqdm(total=work * len(variants), unit="text", desc="probe") as bar:
        for variant in variants:
            bar.set_description(variant.name)
            settings = {**variant.settings(), **measured}
            path = out / VARIANTS / f"{digest(settings)}.json"
            if path.exists():
                result = Result.from_json(json.loads(path.read_text()))
                bar.update(work)
            else:
                encoder = variant.open(dtype, device)
                result = measure(encoder, *data, pairs, bar)
                del encoder
                with atomic(path) as temporary:
                    temporary.write_text(json.dumps({"settings": settings, **asdict(result)}, indent=1))
            results.append(replace(result, name=variant.name, settings=settings))
    write_report(results, out)
    print("\n" + tables(results) + f"\nFigure, tables and numbers: {out}/probing.png, table.md, results.csv")
    return results


def measure(
    encoder: Encoder, train: Sentences, test: Sentences, pairs: list[Pair] | None = None, progress: tqdm | None = None
) -> Result:
    """Probe one encoder."""
    vectors = [np.stack(word_vectors(encoder, part.texts, part.spans, progress=progress)) for part in (train, test)]
    assert vectors[0].shape[1] == LENGTH
    accuracy = {task: accuracy_by_word(task, train, vectors[0], test, vectors[1]) for task in TASKS}
    found = None
    if pairs:
        found = measure_retrieval(encoder, pairs)
        if progress is not None:
            progress.update(2 * len(pairs))
    return Result(accuracy, found)


def find_variants(encoders: list[str], baselines: bool) -> list[Variant]:
    """The variants in the order of the report: baselines first, then the encoders as given.

    Raises:
        FileNotFoundError: nothing is at a path.
        ValueError: no encoders; a folder that is no encoder; with baselines, encoders of several bases.
    """
    if not encoders:
        raise ValueError("probe needs at least one encoder folder; got none. A stage writes one when it ends.")
    cards = {folder: read_card(folder) for folder in encoders}
    stages = Counter(card.stage for card in cards.values())
    variants = [
        Variant(card.stage if stages[card.stage] == 1 else f"{card.stage} ({folder})", folder, card)
        for folder, card in cards.items()
    ]
    return [*untrained(list(cards.values())), *variants] if baselines else variants


def read_card(folder: str) -> Card:
    """The card of an encoder folder, or an error that says what there is instead."""
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"every ENCODER must be an encoder folder; nothing is at {folder}. Train it first.")
    if not Card.is_at(path):
        raise ValueError(
            f"every ENCODER must be an encoder folder, one with an encoder.json; {folder} is none. The untrained base "
            "model is compared by --baselines."
        )
    return Card.read(path)


def untrained(cards: list[Card]) -> list[Variant]:
    """The base model as `uni` (causal) and `bi` (bidirectional), pooled as the first of its encoders."""
    bases = {(card.lineage.base, card.lineage.revision): card for card in reversed(cards)}
    if len(bases) > 1:
        names = ", ".join(base if revision is None else f"{base} @ {revision}" for base, revision in bases)
        raise ValueError(
            f"--baselines needs encoders of one base model; got encoders of {names}. Probe them one base at a time, or "
            "leave the baselines out with --baselines=false."
        )
    [card] = bases.values()
    lineage = Lineage(card.lineage.base, card.lineage.revision, card.lineage.fingerprint)
    plain = replace(card, lineage=lineage, steps=0)
    return [
        Variant("uni", lineage.base, replace(plain, stage="uni", attention="causal")),
        Variant("bi", lineage.base, replace(plain, stage="bi", attention="bidirectional")),
    ]


def digest(settings: dict[str, Any]) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
