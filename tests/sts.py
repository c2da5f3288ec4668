"""A small local copy of STSBenchmark, as `mteb.data` takes it: real mteb runs on it in a blink, and needs no hub."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from runs import OBJECTS, SUBJECTS, VERBS

CONFIG = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: default/test.parquet
---
"""


def write_sts(folder: Path, pairs: int = 40) -> Path:
    """`folder`, with so many pairs of sentences; the more words two share, the higher they are scored."""
    rows = []
    for i in range(pairs):
        one = (SUBJECTS[i % 8], VERBS[i * 3 % 8], OBJECTS[i % 7])
        other = (one[0] if i % 2 else SUBJECTS[(i + 1) % 8], one[1] if i % 3 else VERBS[i % 8], OBJECTS[i * 5 % 7])
        shared = sum(a == b for a, b in zip(one, other, strict=True))
        rows.append({"sentence1": " ".join(one), "sentence2": " ".join(other), "score": 5 * shared / 3})
    place = folder / "mteb__stsbenchmark-sts"
    (place / "default").mkdir(parents=True)
    (place / "README.md").write_text(CONFIG)
    pq.write_table(pa.Table.from_pylist(rows), place / "default" / "test.parquet")
    return folder
