"""The stages, and everything that touches Lightning's Trainer."""

from lightning_modules.contrastive import SimCSE, Supervised
from lightning_modules.mntp import MNTP

__all__ = ["MNTP", "SimCSE", "Supervised"]
