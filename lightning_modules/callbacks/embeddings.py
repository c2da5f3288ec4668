"""What `lightning predict` leaves behind: the vectors of a corpus as a Parquet file."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from typing_extensions import override

from otherside.batching import TextBatch

FILE = "predictions.parquet"


class Embeddings(pl.Callback):
    """Writes `<trainer.default_root_dir>/predictions.parquet`, in the order of the rows: `row`, counted through all of
    `data.predict_sources`, and `vector`, float32. It grows batch by batch and gets its name when it is complete.
    """

    def __init__(self) -> None:
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

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
        vectors = outputs.float().cpu().numpy()
        kind = pa.list_(pa.float32(), vectors.shape[1])
        schema = pa.schema({"row": pa.int64(), "vector": kind})
        if self._writer is None:
            work = self._work(trainer)
            work.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._rows = pq.ParquetWriter(work, schema), 0
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind)
        self._writer.write_table(pa.table([pa.array(batch.rows.numpy()), column], schema=schema))
        self._rows += len(vectors)

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        path = self._work(trainer).replace(Path(trainer.default_root_dir) / FILE)
        print(f"{self._rows} vectors are in {path}")

    def _work(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / f".{FILE}.tmp"
