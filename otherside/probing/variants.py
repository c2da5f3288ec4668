"""The rows of a comparison: encoder folders, their base model untrained, and models such as BERT."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from otherside import adapters, weights
from otherside.backbone import Backbone, BackboneConfig, DTypes
from otherside.encoder import Encoder
from otherside.lineage import BASE, ENCODER, OWN, Card, Lineage
from otherside.llama import within
from otherside.probing.bert import is_bert, load_bert
from otherside.template import template_of
from otherside.tokenizer import load_tokenizer

Kind = Literal["encoder", "bert", "published"]


@dataclass(frozen=True)
class Variant:
    """One row: an encoder folder, a base model untrained, or what others have made: a BERT, an encoder of
    sentence-transformers.

    Args:
        name: in tables and figures.
        model: encoder folder or address of a model.
        card: of the folder; for other models, of what they are run as.
        kind: a decoder whose attention we turn, an encoder of transformers, or a decoder as its publisher runs it.
    """

    name: str
    model: str
    card: Card
    kind: Kind = "encoder"

    def open(self, dtype: DTypes, device: str, merge: bool = True) -> Encoder:
        """Load it; see `Encoder.load`."""
        if self.kind == "bert":
            return load_bert(self.model, dtype).to(device).eval()
        card = self.card
        revision = None if card.lineage.adapters else card.lineage.revision  # the base's
        encoder = Encoder.load(
            self.model,
            revision=revision,
            attention=card.attention,  # type: ignore[arg-type]
            pooling=card.pooling,  # type: ignore[arg-type]
            start_token=card.start_token,
            pool_start=card.pool_start,
            keep_sink=card.keep_sink,
            rescaled=card.rescaled,
            merge=merge,
            dtype=dtype,
            device=device,
        )
        encoder.max_length = within(card.max_length, encoder.backbone.lm.config)
        if card.template != template_of(encoder.tokenizer):  # of an encoder's base
            encoder.tokenizer = load_tokenizer(self.model, revision, card.start_token, card.template)
        return encoder

    def settings(self) -> dict[str, Any]:
        """All of the variant that word vectors depend on."""
        lineage = self.card.lineage
        return {
            "base": lineage.base,
            "revision": lineage.revision,
            "fingerprint": lineage.fingerprint or self._fingerprint(),
            "adapters": [adapter.sha256 for adapter in lineage.adapters],
            "attention": self.card.attention,
            "start_token": self.card.start_token,
            "keep_sink": self.card.keep_sink,
        }

    def _fingerprint(self) -> str | None:
        """A base model says what its weights are only when it is loaded."""
        if self.kind == "bert":
            return adapters.fingerprint(load_bert(self.model, "bfloat16").backbone.lm)
        config = BackboneConfig(self.model, self.card.lineage.revision, dtype="bfloat16")
        return adapters.fingerprint(Backbone.load(config).lm)


def find_variants(encoders: list[str], baselines: bool) -> list[Variant]:
    """The variants in the order of the report: the base untrained first, then the encoders as given.

    A base model among the encoders stands for its two untrained variants.

    Raises:
        FileNotFoundError: nothing is at a path.
        ValueError: no encoders; with baselines, encoders of several bases.
    """
    if not encoders:
        raise ValueError("probe needs at least one encoder folder; got none. A stage writes one when it ends.")
    found: dict[str, Variant] = {}
    for model in encoders:
        for variant in variants_of(model):
            found.setdefault(f"{variant.model} {variant.card.attention}", variant)
    ours = [variant for variant in found.values() if variant.kind == "encoder"]
    if baselines and ours:
        base = untrained([variant.card for variant in ours])
        keys = [f"{variant.model} {variant.card.attention}" for variant in base]
        found = dict(zip(keys, base, strict=True)) | {k: v for k, v in found.items() if k not in keys}
    return told_apart(list(found.values()))


def told_apart(variants: list[Variant]) -> list[Variant]:
    """Those of one name by their runs' folders, such as `supervised` and `simcse-supervised`, or, if that does not do,
    by their whole paths.
    """
    shared = {name for name, times in Counter(variant.name for variant in variants).items() if times > 1}
    named = [replace(v, name=run_of(v.model)) if v.name in shared else v for v in variants]
    clear = Counter(variant.name for variant in named)
    return [
        now if clear[now.name] == 1 else replace(before, name=f"{before.name} ({before.model})")
        for before, now in zip(variants, named, strict=True)
    ]


def run_of(model: str) -> str:
    """Name of the folder that a run was in."""
    path = Path(model)
    return path.parent.name if path.name == ENCODER else path.name


def variants_of(model: str) -> list[Variant]:
    """What one ENCODER stands for: a base model for `uni` and `bi`, all others for themselves."""
    try:
        place = weights.locate(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"every ENCODER must be an encoder folder, a base model or a BERT; nothing is at {model}. Train it first."
        ) from error
    card = weights.card_of(model)
    if card.stage != BASE:
        return [Variant(card.stage, model, card)]
    if isinstance(place, Path) and place.is_dir() and not (place / "config.json").is_file():
        raise ValueError(
            f"every ENCODER must be an encoder folder, one with an encoder.json, a base model or a BERT; "
            f"{model} is none"
        )
    kind: Kind | None = "published" if card.start_token == OWN else "bert" if is_bert(model) else None
    if kind is None:
        return untrained([card])
    name = place.name if isinstance(place, Path) else place
    if model.startswith(weights.PACKAGE):
        name = model.removeprefix(weights.PACKAGE).split("/")[0]
    return [Variant(name, model, replace(card, stage=name), kind)]


def untrained(cards: list[Card]) -> list[Variant]:
    """The base model as `uni` (causal) and `bi` (bidirectional), read and pooled as by the first of its encoders."""
    bases = {(card.lineage.base, card.lineage.revision): card for card in reversed(cards)}
    if len(bases) > 1:
        names = ", ".join(base if revision is None else f"{base} @ {revision}" for base, revision in bases)
        raise ValueError(
            f"--baselines needs encoders of one base model; got encoders of {names}. Probe them one base at a time, or "
            "leave the baselines out with --baselines=false."
        )
    [card] = bases.values()
    known = {other.lineage.fingerprint for other in cards} - {None}
    fingerprint = card.lineage.fingerprint or (known.pop() if len(known) == 1 else None)
    lineage = Lineage(card.lineage.base, card.lineage.revision, fingerprint)
    plain = replace(card, lineage=lineage, steps=0, rescale=None)
    return [
        Variant("uni", lineage.base, replace(plain, stage="uni", attention="causal")),
        Variant("bi", lineage.base, replace(plain, stage="bi", attention="bidirectional")),
    ]
