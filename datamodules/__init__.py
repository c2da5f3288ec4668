"""Data modules: sources stream in, typed batches come out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.blocks import Blocks
    from datamodules.pairs import Pairs
    from datamodules.sentences import Sentences
    from datamodules.sources import Source

__all__ = ["Blocks", "Pairs", "Sentences", "Source"]


def __getattr__(name: str) -> Any:
    """Import on first use: `python -m datamodules.wikipedia` needs none of Lightning."""
    if name not in __all__:
        raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{'sources' if name == 'Source' else name.lower()}"), name)
