"""Encoders averaged into one: their weights, exactly, on what they have in common.

A LoRA update is a product B A, and a sum of updates is the product of the B side by side and the A one below the other:
the average of encoders of one base is an adapter again, whose rank is the sum of theirs (Wortsman et al., 2022, average
fine-tuned models; with the base itself among them it is WiSE-FT's interpolation). Where a stage was full fine-tuning,
the average is of whole weights, in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from otherside import adapters, full, stages, weights
from otherside.adapters import SavedAdapter
from otherside.backbone import Backbone, BackboneConfig
from otherside.files import atomic_folder, check_out, make_folder
from otherside.lineage import BASE, CARD, Card, Lineage, Merged, Parent, Training

STAGE = "soup"
READ = ("attention", "pooling", "max_length", "start_token", "pool_start", "sink", "rescale", "template")


def soup(encoders: list[str], out: Path, weights: list[float] | None = None, force: bool = False) -> None:
    """Average the weights of encoders of one base model into a new encoder folder.

    The stages that all have in common stay as they are; of the others one adapter is made, or one file of weights where
    one was full fine-tuning, which is exactly the average. A base model among the encoders draws it towards itself.

    Args:
        encoders: two or more encoder folders, of which one may be their base model.
        out: encoder folder to write.
        weights: of each encoder, such as 0.7,0.3; by default equal.
        force: replace OUT if it is there and not empty.

    Raises:
        FileNotFoundError: no such encoder.
        FileExistsError: OUT is not empty and `force` is not set.
        ValueError: fewer than two encoders; other bases, or texts read in another way; an adapter that is no plain
            LoRA; weights that do not fit.
    """
    for encoder in encoders:
        check_out(out, encoder, force)
    shares = _shares(encoders, weights)
    cards = [_card(encoder) for encoder in encoders]
    first = next((card for card in cards if card.stage != BASE), None)
    if first is None:
        raise ValueError("soup needs an encoder folder; got base models alone")
    for encoder, card in zip(encoders, cards, strict=True):
        _check_alike(encoder, card, encoders[cards.index(first)], first)
    lineages = [card.lineage.adapters for card in cards]
    levels = zip(*lineages, strict=False)
    common = [level[0] for level in takewhile(lambda level: len({a.sha256 for a in level}) == 1, levels)]
    own = [merged[len(common) :] for merged in lineages]
    if not any(own):
        raise ValueError("soup needs encoders that differ; these are one and the same")
    changed = Changed(encoders, shares, own)
    make_folder(out.parent, "the folder of OUT")
    with atomic_folder(out) as work:
        history = _history(cards, shares, first, len(common))
        made = _write(work, encoders[cards.index(first)], replace(first, history=history), common, changed)
    print(f"{out}: the average of {len(encoders)}, {made} on {len(common)} common stages")
    if any(card.prompts != first.prompts for card in cards if card.stage != BASE):
        print("Their prompts differ, so it has none. `lightning export --prompts` gives an export some.")


@dataclass(frozen=True)
class Changed:
    """What the encoders do not have in common.

    Args:
        encoders: all.
        shares: of each in the average.
        own: stages of each.
    """

    encoders: Sequence[str]
    shares: Sequence[float]
    own: Sequence[tuple[Merged, ...]]

    @property
    def is_whole(self) -> bool:
        """Whether a stage was full fine-tuning."""
        return any(stage.kind == "weights" for own in self.own for stage in own)

    def parts(self) -> list[tuple[SavedAdapter, float]]:
        """The adapters of all encoders, each with its share."""
        return [(SavedAdapter(a), share) for own, share in zip(self.own, self.shares, strict=True) for a in own]

    def average(self) -> dict[str, Tensor]:
        """Of the weights that any of the stages changed, in float32; one encoder is in memory at a time."""
        names = {name for own in self.own for stage in own if stage.folder for name in stages.changed(stage)}
        found: dict[str, Tensor] = {}
        for encoder, share in zip(self.encoders, self.shares, strict=True):
            lm = Backbone.load(BackboneConfig(encoder, dtype="float32")).lm
            for name, weight in lm.named_parameters():
                if name in names:
                    found[name] = found[name].add_(weight, alpha=share) if name in found else weight * share
        return found


def _shares(encoders: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(encoders) < 2:
        raise ValueError(f"soup needs two encoders or more; got {len(encoders)}")
    shares = [1 / len(encoders)] * len(encoders) if weights is None else list(weights)
    if len(shares) != len(encoders) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"--weights must be one number for each of the {len(encoders)} encoders, with the sum 1; got "
            f"{','.join(f'{share:g}' for share in shares)}"
        )
    return shares


def _card(encoder: str) -> Card:
    card = weights.card_of(encoder)
    if card.stage != BASE and not Card.is_at(Path(weights.locate(encoder))):
        raise ValueError(f"soup takes encoder folders of ours; {encoder} is LLM2Vec's. Save it as one by Encoder.save.")
    return card


def _check_alike(encoder: str, card: Card, other: str, first: Card) -> None:
    """Raise unless two encoders are of one base and read texts alike; a base model reads as the encoders do."""
    ours, theirs = (replace(c.lineage, adapters=(), fingerprint=None) for c in (card, first))
    known = {card.lineage.fingerprint, first.lineage.fingerprint} - {None}
    if ours != theirs or len(known) > 1:
        raise ValueError(
            f"soup needs encoders of one base model; {encoder} is of {_named(card.lineage)}, {other} of "
            f"{_named(first.lineage)}"
        )
    differences = [name for name in READ if getattr(card, name) != getattr(first, name)] if card.stage != BASE else []
    if differences:
        said = "; ".join(f"{name} {getattr(card, name)} and {getattr(first, name)}" for name in differences)
        raise ValueError(f"soup needs encoders that read texts alike; {encoder} and {other} differ in {said}")


def _history(cards: Sequence[Card], shares: Sequence[float], first: Card, common: int) -> tuple[Training, ...]:
    """That of the common stages, then the average: its parents, all their data, and what they agree on."""
    trained = [card for card in cards if card.stage != BASE]
    prompts = first.prompts if all(card.prompts == first.prompts for card in trained) else {}
    sizes = tuple(size for size in first.dimensions if all(size in card.dimensions for card in trained))
    data = dict.fromkeys(path for card in cards for told in _split(card, common)[1] for path in told.data)
    parents = tuple(_parent(card, share) for card, share in zip(cards, shares, strict=True))
    return (*_split(first, common)[0], Training(STAGE, 0, tuple(data), prompts, sizes, parents))


def _split(card: Card, common: int) -> tuple[tuple[Training, ...], tuple[Training, ...]]:
    """What is noted of the common stages, and of the encoder's own, which come last."""
    place = max(0, len(card.history) - (len(card.lineage.adapters) - common))
    return card.history[:place], card.history[place:]


def _parent(card: Card, share: float) -> Parent:
    stages = card.lineage.adapters
    return Parent(card.stage, stages[-1].sha256 if stages else None, share)


def _named(lineage: Lineage) -> str:
    return f"{lineage.base} ({(lineage.fingerprint or 'unknown')[:8]})"


def _write(work: Path, source: str, card: Card, common: Sequence[Merged], changed: Changed) -> str:
    """Write the encoder folder; what it is beside the common stages."""
    for file in Path(weights.locate(source)).iterdir():
        if file.is_file() and file.name != CARD:
            shutil.copyfile(file, work / file.name)
    lineage = replace(card.lineage, adapters=tuple(common))
    if changed.is_whole:
        average = changed.average()
        folder = stages.folder_in(work, len(common), STAGE, "weights")
        full.write(average, folder)
        lineage = stages.copy(lineage, work, average.keys()).extended(STAGE, folder, "weights")
        made = f"{len(average)} tensors of weights"
    else:
        lineage = stages.copy(lineage, work)
        folder = stages.folder_in(work, len(common), STAGE)
        made = _write_adapter(changed.parts(), folder, lineage.base)
        lineage = lineage.extended(STAGE, folder)
    replace(card, lineage=lineage, stage=STAGE, steps=0).write(work)
    return made


def _write_adapter(parts: Sequence[tuple[SavedAdapter, float]], folder: Path, base: str) -> str:
    rank = sum(part.config.r for part, _ in parts)
    modules = sorted({name.rpartition(".")[2] for part, _ in parts for name in _modules(part)})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules)
    made = {f"{adapters.PREFIX}{key}": value for key, value in side_by_side(parts).items()}
    adapters.write(made, config, folder, base)
    return f"an adapter of rank {rank}"


def side_by_side(parts: Sequence[tuple[SavedAdapter, float]]) -> dict[str, Tensor]:
    """Tensors of the adapter that is the weighted sum of others, scaled by 1.

    Raises:
        ValueError: one is no plain LoRA.
    """
    for part, _ in parts:
        config = part.config
        if config.use_dora or config.rank_pattern or config.alpha_pattern or config.lora_bias:
            raise ValueError(f"soup needs plain LoRA adapters; {part.adapter.name} in {part.adapter.folder} is none")
    sizes: dict[str, tuple[int, int]] = {}
    for part, _ in parts:
        for name in _modules(part):
            a, b = (part.weights[f"{name}.lora_{side}.weight"] for side in "AB")
            sizes[name] = (a.shape[1], b.shape[0])
    found = {}
    for name, (inputs, outputs) in sizes.items():
        above, beside = [], []
        for part, share in parts:
            r, config = part.config.r, part.config
            if f"{name}.lora_A.weight" not in part.weights:
                above.append(torch.zeros(r, inputs))
                beside.append(torch.zeros(outputs, r))
                continue
            scaling = config.lora_alpha / (r**0.5 if config.use_rslora else r)
            above.append(part.weights[f"{name}.lora_A.weight"].float())
            beside.append(part.weights[f"{name}.lora_B.weight"].float() * (share * scaling))
        found[f"{name}.lora_A.weight"] = torch.cat(above)
        found[f"{name}.lora_B.weight"] = torch.cat(beside, 1)
    return found


def _modules(part: SavedAdapter) -> list[str]:
    return [key.removesuffix(".lora_A.weight") for key in part.weights if key.endswith(".lora_A.weight")]
