"""What `lightning predict` leaves behind: the vectors of a corpus as a Parquet file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from typing_extensions import override

from lightning_modules import history
from lightning_modules.base import EncoderModule
from otherside import distributed
from otherside.batching import TextBatch
from otherside.files import atomic, keep_parts
from otherside.lineage import sha256
from otherside.weights import card_of

FILE, WORK = "predictions.parquet", ".predictions"
KEY = b"otherside.settings"  # of the file's own metadata
DRIFT = 7 * 24 * 3600.0  # seconds: no collective keeps ranks in step while they predict
ROWS = 8192  # about so many rows of all ranks are one part


class Embeddings(pl.Callback):
    """Lets `lightning predict` write vectors to `<trainer.default_root_dir>/predictions.parquet`.

    Rows are in the order of the texts: `row`, counted through all of `data.predict_sources` from 0, and `vector`,
    float32. Blank texts, and malformed rows that are skipped, are counted and have no vector.
    The file's metadata say what its vectors are of, and it is replaced by vectors of the same only.

    Each rank keeps its rows of a few batches, a part, in a file of its own; a run that was cut goes on behind the last
    part that all ranks have finished, if nothing has changed that decides vectors. At last the parts become one file.

    Args:
        checkpoint: whose weights are used; None: those that the backbone is loaded with.
    """

    def __init__(self, checkpoint: Path | str | None = None) -> None:
        self.checkpoint = checkpoint

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, EncoderModule)
        if stage != "predict":
            return
        self._work = Path(trainer.default_root_dir) / WORK
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._batches = max(1, ROWS // data.global_batch_size)  # of a part
        self._made_with = self._settings(trainer, pl_module, data)
        check_same(Path(trainer.default_root_dir) / FILE, self._made_with)
        if trainer.is_global_zero:
            trained = history.of(pl_module.stage, 0, data, None)
            for source in data.predict_sources:
                if not any(trained.had(name, source.instruction) for name in ("query", "document")):
                    what = f"the stage was trained with {trained.instructions} before texts"
                    distributed.say(f"note: {what}; the instruction of {source} is {source.instruction!r}")
            keep_parts(self._work, [self._made_with, trainer.world_size])
        trainer.strategy.barrier()
        self._part = trainer.strategy.broadcast(self._done(trainer.world_size))
        data.predict_from = self._part * self._batches
        if not len(data.predict_dataloader()):  # cut before the parts became one file; Lightning runs no empty loader
            self._part -= 1
            data.predict_from = self._part * self._batches
        if self._part:
            distributed.say(f"predict goes on behind batch {data.predict_from}")
        self._held: list[tuple[np.ndarray, np.ndarray]] = []

    def _settings(self, trainer: pl.Trainer, module: EncoderModule, data: Any) -> dict[str, Any]:
        """All that decides vectors, as JSON holds it."""
        config = module.backbone_config
        files = sorted(Path(self.checkpoint).rglob("*")) if self.checkpoint else []
        weights = [
            asdict(card_of(config.model, config.revision).lineage),
            *(sha256(path) for path in files if path.is_file()),
        ]
        vector = [module.pooling, module.pool_start, module.rescaled, module.max_length]
        model = [vars(config), vars(module.trained), *vector, trainer.precision]
        settings = {"model": model, "weights": weights, "data": data.predict_settings()}
        return dict(json.loads(json.dumps(settings, default=str)))

    def _file(self, part: int, rank: int) -> Path:
        return self._work / f"{part:08}-{rank}.parquet"

    def _done(self, world_size: int) -> int:
        """Number of parts that all ranks have finished, without a gap."""
        part = 0
        while all(self._file(part, rank).is_file() for rank in range(world_size)):
            part += 1
        return part

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor,
        batch: TextBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._held.append((batch.rows.numpy(), outputs.float().cpu().numpy()))
        if len(self._held) == self._batches:
            self._write_part(trainer.global_rank)

    def _write_part(self, rank: int) -> None:
        rows, vectors = (np.concatenate(column) for column in zip(*self._held, strict=True))
        kind = pa.list_(pa.float32(), vectors.shape[1])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind)
        with atomic(self._file(self._part, rank)) as path:
            pq.write_table(pa.table({"row": pa.array(rows), "vector": column}), path)
        self._part, self._held = self._part + 1, []

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._held:
            self._write_part(trainer.global_rank)
        distributed.meet(DRIFT)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._join(trainer.world_size, Path(trainer.default_root_dir) / FILE)

    def _join(self, world_size: int, path: Path) -> None:
        work, written = self._work / "all.tmp", 0
        tables = self._parts(world_size)
        first = next(tables)
        made_with = {KEY: json.dumps(self._made_with).encode()}
        with pq.ParquetWriter(work, first.schema.with_metadata(made_with)) as writer:
            for table in (first, *tables):
                writer.write_table(table.replace_schema_metadata(made_with))
                written += len(table)
        work.replace(path)
        shutil.rmtree(self._work)
        print(f"{written} vectors are in {path}")

    def _parts(self, world_size: int) -> Iterator[pa.Table]:
        """The parts one after the other, each in the order of its rows."""
        for part in range(self._done(world_size)):
            ranks = [pq.read_table(self._file(part, rank)) for rank in range(world_size)]
            yield pa.concat_tables(ranks).sort_by("row")


def check_same(path: Path, settings: dict[str, Any]) -> None:
    """Raise a ValueError if vectors made with other settings are in `path`."""
    if not path.is_file():
        return
    note = (pq.read_schema(path).metadata or {}).get(KEY)
    found = json.loads(note) if note else {}
    changed = [name for name, value in settings.items() if found.get(name) != value] if note else ["unknown"]
    if changed:
        raise ValueError(
            f"lightning predict must not overwrite vectors of other texts or weights; {path} is of other settings "
            f"({', '.join(changed)}). Move it away."
        )
