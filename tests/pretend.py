"""A W&B logger for tests: W&B itself wants a server, or a service of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


class WandbLogger(Logger):
    """Keeps what W&B would: each start's run id, where it writes, and the names of what was logged."""

    def __init__(self, save_dir: str = ".", id: str | None = None, version: str | None = None) -> None:
        super().__init__()
        self._save_dir, self.id = save_dir, id
        (Path(save_dir) / "wandb").mkdir(parents=True, exist_ok=True)
        with (Path(save_dir) / "wandb" / "starts.jsonl").open("a") as file:
            file.write(json.dumps({"id": id}) + "\n")

    @property
    def name(self) -> str:
        return "lightning_logs"

    @property
    def version(self) -> str | None:
        return self.id

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass
