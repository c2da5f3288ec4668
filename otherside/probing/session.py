"""One variant while it is measured: its model, opened when something is missing, and the files that keep the rest."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from otherside.backbone import DTypes
from otherside.encoder import Encoder
from otherside.files import atomic
from otherside.probing.features import Store
from otherside.probing.generation import completion
from otherside.probing.results import OFF, ON
from otherside.probing.variants import Variant

VERSION = 7  # raise it when the same settings would measure something else: it renames what is kept
VARIANTS, FEATURES = "variants", "features"
Layers = Literal["last", "all"] | list[int]


class Session:
    """One variant while it is measured.

    Args:
        variant: which.
        dtype: of the weights.
        device: such as cpu or cuda.
        out: folder for vectors and results.
    """

    def __init__(self, variant: Variant, dtype: DTypes, device: str, out: Path) -> None:
        self.variant, self._dtype, self._device, self._out = variant, dtype, device, out
        self.settings = {**variant.settings(), "dtype": dtype}
        self.store = Store(out / FEATURES, self.settings, lambda: self.encoder)

    @cached_property
    def encoder(self) -> Encoder:
        """Opened once."""
        return self.variant.open(self._dtype, self._device)

    @cached_property
    def generator(self) -> Encoder:
        """Opened once more, with the base's own weights where it has them; one copy in memory at a time."""
        self.__dict__.pop("encoder", None)
        return self.variant.open(self._dtype, self._device, merge=bool(self.variant.card.lineage.trained_whole))

    def completions(self, text: str) -> dict[str, str]:
        """How the first words of `text` are gone on with, adapters off and on; on alone in full fine-tuning."""
        path = self.path("completions", text)
        if not path.exists():
            backbone, found = self.generator.backbone, {}
            if not backbone.lineage.trained_whole:
                with backbone.as_base():
                    found[OFF] = completion(self.generator, text)
            backbone.attention = "causal"
            found[ON] = completion(self.generator, text)
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(found))
        return json.loads(path.read_text())

    @cached_property
    def last(self) -> int:
        """Number of the last layer."""
        path = self.path("layers")
        if not path.exists():
            with atomic(path) as temporary:
                temporary.write_text(str(self.encoder.backbone.layers))
        return int(path.read_text())

    def chosen(self, layers: Layers) -> list[int]:
        """Layer numbers."""
        if isinstance(layers, list):
            if wrong := [layer for layer in layers if not 0 <= layer <= self.last]:
                raise ValueError(
                    f"--layers must lie in 0 … {self.last}, the last of {self.variant.name}; got "
                    f"{', '.join(map(str, wrong))}"
                )
            return sorted(set(layers))
        return [self.last] if layers == "last" else list(range(self.last + 1))

    def path(self, *content: Any) -> Path:
        """Where a result that depends on the variant and on `content` is kept."""
        settings = json.dumps([VERSION, self.settings, content], sort_keys=True)
        return self._out / VARIANTS / f"{hashlib.sha256(settings.encode()).hexdigest()[:24]}"
