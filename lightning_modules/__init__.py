"""The stages, and everything that touches Lightning's Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.contrastive import SimCSE, Supervised
    from lightning_modules.mntp import MNTP

__all__ = ["MNTP", "SimCSE", "Supervised"]

_HOMES = {"MNTP": "mntp", "SimCSE": "contrastive", "Supervised": "contrastive"}


def __getattr__(name: str) -> Any:
    """Import a stage when it is asked for: `lightning --help` needs none."""
    if name not in _HOMES:
        raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
