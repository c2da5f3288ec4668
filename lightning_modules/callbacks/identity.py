"""A run knows what it is, writes it down, and goes on as that only."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_modules import finished, identity
from lightning_modules.base import EncoderModule
from lightning_modules.checkpoints import IDENTITY
from lightning_modules.identity import Values
from otherside import distributed
from otherside.tokenizer import start_name
from otherside.weights import card_of

SLOW = 60.0  # seconds in which nodes see a file that another has made; NFS may keep a folder's list for 30


class Identity(pl.Callback):
    """What decides the result (`lightning_modules.identity`) is kept in every checkpoint and in `finished.json`, and
    compared when `lightning fit` goes on, or would have nothing to do. `validate`, `test` and `predict` compare what
    decides vectors.

    Args:
        settings: of model and data, as `identity.settings` has them.
        given: as `identity.given` has them, for `lightning recipe`.
    """

    def __init__(self, settings: Values, given: Values) -> None:
        self.settings, self.given = settings, given
        self.checkpoint: Path | str | None = None  # that the run goes on from
        self.now: Values = {}
        self.fingerprint: str | None = None  # of the base's weights; known once they are loaded
        self.changes: list[str] = []  # on purpose, on the way; each with its step

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise a ValueError where the run is another than it was; end it where it has ended already."""
        assert isinstance(pl_module, EncoderModule)
        trainer.strategy.barrier()  # who raises while others are still looking for its store keeps them waiting
        if stage != "fit":
            self._read(pl_module)
            return
        root = Path(trainer.default_root_dir)
        check_seen_by_all(root)
        self.now = identity.plain({**self.settings, **facts(pl_module), **training_facts(trainer, pl_module)})
        # One answer: where file systems are slow to show a note, ranks would wait for each other at different places
        if note := distributed.from_first(finished.ended(root, trainer.max_steps, trainer.max_epochs)):
            self._end(trainer, root, note)
        start = f"resumes from {self.checkpoint}" if self.checkpoint else "no checkpoint yet"
        distributed.say(f"fit in {root}: {start}")
        self._compare(trainer)

    def _read(self, module: EncoderModule) -> None:
        if known := self._known():
            self.fingerprint = known["fingerprint"]
            now = {**known["identity"], **identity.plain({**self.settings, **facts(module)})}
            self._refuse(identity.of_vectors(identity.differences(known["identity"], now)))

    def _known(self) -> dict[str, Any] | None:
        """What the checkpoint says of itself; None where there is no checkpoint, or none that can be read.

        Raises:
            ValueError: ranks, each of which looked for it itself, found different ones; or it says nothing.
        """
        mine = str(self.checkpoint or "no checkpoint")
        if (first := distributed.from_first(mine)) != mine:
            raise ValueError(
                f"all ranks must go on from the same checkpoint; rank 0 found {first}, rank {distributed.rank()} "
                f"{mine}. Set trainer.default_root_dir to a folder that all nodes see."
            )
        folder = Path(self.checkpoint) if self.checkpoint else None
        if folder is None or not folder.is_dir():  # reading it says what is wrong
            return None
        if not (folder / IDENTITY).is_file():
            raise ValueError(
                f"a checkpoint must say of which model, data and settings it is; {folder} has no {IDENTITY}, as an "
                "older version wrote it, which read texts without a start token. Use that version, the run's encoder/, "
                "or a new trainer.default_root_dir."
            )
        known: dict[str, Any] = json.loads((folder / IDENTITY).read_text())
        return known

    def _end(self, trainer: pl.Trainer, root: Path, note: dict[str, Any]) -> None:
        if changed := identity.untrained(identity.differences(note.get("identity", {}), self.now)):
            raise ValueError(
                f"{root} is finished and must stay what it is; changed since: {identity.told(changed)}. Set it back, "
                f"choose a new trainer.default_root_dir, or remove {root} to train it again."
            )
        unknown = "" if "identity" in note else " (by an older version, which noted no settings to compare)"
        ending = f"is finished after {note['steps']} steps{unknown}: its encoder is in {root / finished.ENCODER}"
        distributed.say(f"{root} {ending}. Nothing to do.")
        trainer.strategy.barrier()
        sys.exit(0)

    def _compare(self, trainer: pl.Trainer) -> None:
        if not (known := self._known()):
            return
        self.fingerprint, self.changes = known["fingerprint"], known["changes"]
        changed = identity.differences(known["identity"], self.now)
        self._refuse(identity.refused(changed))
        for name, pair in changed.items():
            self.changes.append(f"{Path(str(self.checkpoint)).stem}: {identity.told({name: pair})}")
            distributed.say(f"goes on with {identity.told({name: pair})}")

    def _refuse(self, changed: Values) -> None:
        if changed:
            raise ValueError(
                f"a run must go on as it began; changed since {self.checkpoint}: {identity.told(changed)}. Set it "
                "back, or start in a new trainer.default_root_dir."
            )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The base's weights can be compared once they are loaded."""
        assert isinstance(pl_module, EncoderModule)
        found = pl_module.encoder.backbone.lineage.fingerprint  # on rank 0, where weights are sharded
        if found and self.fingerprint:
            self._refuse(identity.differences({"fingerprint": self.fingerprint}, {"fingerprint": found}))
        self.fingerprint = found or self.fingerprint

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["identity"] = self.notes

    @property
    def notes(self) -> dict[str, Any]:
        """What is written down."""
        return {"identity": self.now, "fingerprint": self.fingerprint, "changes": self.changes}


def check_seen_by_all(root: Path) -> None:
    """Raise a ValueError on all ranks if one of them does not see what rank 0 writes into the run's folder."""
    if distributed.world_size() == 1:
        return
    file = root / distributed.from_first(f".seen-{uuid.uuid4().hex}")
    first = distributed.rank() == 0
    try:
        if first:
            file.touch()
        distributed.from_all(None)  # it is there; who looks before may be told for long that it is not
        deadline = time.monotonic() + SLOW
        while not (seen := os.access(file, os.F_OK)) and time.monotonic() < deadline:
            time.sleep(0.1)
        places = distributed.from_all(None if seen else f"rank {distributed.rank()} on {socket.gethostname()}")
    finally:
        if first:
            file.unlink(missing_ok=True)
    if blind := [place for place in places if place]:
        raise ValueError(
            f"trainer.default_root_dir must be a folder that all nodes see; that of rank 0, {root.absolute()}, is not "
            f"seen by {', '.join(blind)}. Set it to a folder on a shared file system."
        )


def facts(module: EncoderModule) -> Values:
    """What no setting of the model says, or what it inherited."""
    backbone = module.backbone_config
    lineage = card_of(backbone.model, backbone.revision).lineage
    return {
        "base": lineage.base,
        "revision": lineage.revision,
        "adapters": identity.names(lineage),
        "trained": "lora" if module.lora else "full",
        "model.backbone.attention": backbone.attention,
        "model.backbone.dtype": backbone.dtype,
        "model.backbone.start_token": start_name(module.tokenizer),
        "model.backbone.keep_sink": backbone.keep_sink,
        "model.pooling": module.pooling,
        "model.pool_start": module.pool_start,
        "model.rescaled": module.rescaled,
        "model.max_length": module.max_length,
    }


def training_facts(trainer: pl.Trainer, module: EncoderModule) -> Values:
    """Content of data, and what the trainer made of its settings."""
    data: Values = getattr(trainer.datamodule, "identity", dict)()  # type: ignore[attr-defined]
    return {
        "seed_everything": module.seed,
        **{f"data.{name}": value for name, value in data.items()},
        "trainer.precision": str(trainer.precision),
        "trainer.gradient_clip_val": trainer.gradient_clip_val or None,
        "trainer.gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.max_steps": trainer.max_steps,
        "trainer.max_epochs": trainer.max_epochs,
        "trainer.strategy": type(trainer.strategy).__name__,
        "ranks": trainer.world_size,
    }
