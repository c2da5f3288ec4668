"""Callbacks, one a file."""

from lightning_modules.callbacks.embeddings import Embeddings
from lightning_modules.callbacks.encoder_folder import EncoderFolder
from lightning_modules.callbacks.environment import Environment
from lightning_modules.callbacks.identity import Identity
from lightning_modules.callbacks.monitors import Best, Monitors
from lightning_modules.callbacks.mteb import MTEB, MTEBSettings
from lightning_modules.callbacks.probing import Probing
from lightning_modules.callbacks.progress import ProgressLines, RunProgressBar
from lightning_modules.callbacks.requeue import Requeue
from lightning_modules.callbacks.throughput import Throughput
from lightning_modules.callbacks.watchdog import Watchdog

__all__ = [
    "MTEB",
    "Best",
    "Embeddings",
    "EncoderFolder",
    "Environment",
    "Identity",
    "MTEBSettings",
    "Monitors",
    "Probing",
    "ProgressLines",
    "Requeue",
    "RunProgressBar",
    "Throughput",
    "Watchdog",
]
