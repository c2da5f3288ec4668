"""The state that attention rests on, kept where attention is opened.

In a causal Llama the first token sees nothing but itself. In one of the first layers its state grows far beyond all
others (a "massive activation"; Sun et al., 2024), and the attention of all later layers rests on it (an "attention
sink"; Xiao et al., 2024). In open attention the first token sees the text; its state does not grow, and most of what
the text means is lost on the way through the layers, until training finds another way. So in open attention the start
token enters with the state that it has just before it grows: an embedding, which exports can carry to any engine.

Shapes: D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from otherside import weights
from otherside.conversion import fetch
from otherside.lineage import AUTO, SINK, Card, Lineage, checked, sha256
from otherside.waits import quiet_libraries

LAYERS = 8  # that are looked at; published Llamas, Mistrals and Qwens have a sink behind their fourth
COMPANY = 31  # tokens that the start token is compared with
GROWN = 4.0  # times their median norm; SmolLM2: 1 in the layer before, 10 in its sink


@dataclass(frozen=True)
class Sink:
    """What the start token enters with in bidirectional attention.

    Args:
        token: its id.
        state: (D,) float32.
    """

    token: int
    state: Tensor

    def write(self, folder: Path) -> str:
        """Write its file into an encoder folder; the SHA-256 of it, for the card."""
        save_file({"token": torch.tensor(self.token), "state": self.state.float().cpu()}, folder / SINK)
        return sha256(folder / SINK)

    @classmethod
    def read(cls, folder: Path, digest: str) -> Sink:
        """Of an encoder folder; raises as `lineage.checked`."""
        content = load_file(checked(folder / SINK, digest, "the start token's state"))
        return cls(int(content["token"]), content["state"])


def sink_of(model: str, card: Card, token: int) -> Sink | None:
    """That of an encoder folder which was made with this start token, else that of the base.

    Args:
        model: see `BackboneConfig`.
        card: of `model`.
        token: id of the start token.
    """
    if card.sink not in (None, AUTO):  # AUTO: yet to be found in the base
        place = weights.locate(model)
        assert isinstance(place, Path) and card.sink
        if (kept := Sink.read(place, card.sink)).token == token:
            return kept
    return find(card.lineage, token)


@torch.no_grad()
def find(lineage: Lineage, token: int) -> Sink | None:
    """The state of a start token just before it grows, in the first layers of a base model.

    None where it does not grow, and where attention has been opened already, as in an exported encoder.

    Always computed on the CPU in float32, so that it does not depend on how the whole model is loaded.
    """
    with torch.device("cpu"):  # Lightning has the strategy's device here
        return _found(first_layers(lineage).eval(), token)


def _found(first: PreTrainedModel, token: int) -> Sink | None:
    """See `find`."""
    if not getattr(first.config, "is_causal", True):
        return None
    embeddings: Any = first.get_input_embeddings()
    vocabulary = embeddings.num_embeddings
    others = torch.linspace(0, vocabulary - 1, COMPANY).long()
    ids = torch.cat([torch.tensor([token]), others])[None]
    states: Any = first(ids, use_cache=False, output_hidden_states=True).hidden_states
    norms = torch.stack([state[0].norm(dim=1) for state in states[:-1]])  # the last is normalised
    grown = norms[:, 0] > GROWN * norms[:, 1:].median(dim=1).values
    if not grown.any() or grown[0]:
        return None
    before = states[int(grown.int().argmax()) - 1][0, 0]
    # Some families multiply embeddings before the first layer
    scale = first.get_input_embeddings()(ids[:, :1])[0, 0].norm() / states[0][0, 0].norm()
    return Sink(token, before * scale)


def first_layers(lineage: Lineage) -> PreTrainedModel:
    """The first `LAYERS` of a base model, which alone are read."""
    place = fetch(lineage.base, lineage.revision)
    config = AutoConfig.from_pretrained(place, revision=lineage.revision)
    config.num_hidden_layers = min(config.num_hidden_layers, LAYERS)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[:LAYERS]
    options = {"revision": lineage.revision, "config": config, "dtype": torch.float32, "use_safetensors": True}
    with silent():  # about the layers that are left out
        return AutoModel.from_pretrained(place, **options)


@contextmanager
def silent() -> Iterator[None]:
    """No word and no bar from transformers inside the block."""
    said, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    quiet_libraries()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if bars:
            logging.enable_progress_bar()
