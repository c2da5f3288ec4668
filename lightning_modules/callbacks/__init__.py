"""Callbacks, one a file."""

from lightning_modules.callbacks.embeddings import Embeddings
from lightning_modules.callbacks.encoder_folder import EncoderFolder
from lightning_modules.callbacks.mteb import MTEB, MTEBSettings
from lightning_modules.callbacks.progress import ProgressLines, RunProgressBar
from lightning_modules.callbacks.requeue import Requeue
from lightning_modules.callbacks.throughput import Throughput

__all__ = [
    "MTEB",
    "Embeddings",
    "EncoderFolder",
    "MTEBSettings",
    "ProgressLines",
    "Requeue",
    "RunProgressBar",
    "Throughput",
]
