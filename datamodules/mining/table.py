"""The rows that mining makes, and the file that they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("query", "positive", "negatives", "scores", "positive_score")
SCHEMA = pa.schema(  # of a part, whose last two columns are for the report
    [
        ("query", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("positive_score", pa.float32()),
        ("suspects", pa.int64()),
        ("nearest", pa.float32()),
    ]
)


class Writer:
    """Writes tables of `COLUMNS`, inside `with`, as JSON lines or Parquet.

    Args:
        path: to write.
        suffix: .jsonl or .parquet.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        schema = pa.schema([SCHEMA.field(name) for name in COLUMNS])
        self._file: Any = path.open("w", encoding="utf-8") if suffix == ".jsonl" else pq.ParquetWriter(path, schema)

    def __enter__(self) -> Callable[[pa.Table], None]:
        return self._file.write_table if isinstance(self._file, pq.ParquetWriter) else self._lines

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lines(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            row["scores"] = [round(score, 4) for score in row["scores"]]
            row["positive_score"] = round(row["positive_score"], 4)
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
