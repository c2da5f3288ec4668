"""The lines of docs/serving.md run."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SENTENCES
from exports import trained

from otherside.encoder import Encoder

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"


def test_search_over_predictions(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    encoder = Encoder.load(trained(tiny_llama, tmp_path / "encoder"))
    vectors = encoder.encode(SENTENCES)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"row": range(5, 5 + len(vectors)), "vector": column}), tmp_path / "predictions.parquet")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(PAGE.read_text().split("```python")[1].partition("\n")[2].split("```")[0], found)
    [query] = encoder.encode(["Who sat on the mat?"], normalize=True)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    assert found["rows"].tolist() == [(5 + cosines.argsort()[::-1][:3]).tolist()]
    assert np.allclose(found["cosines"], np.sort(cosines)[::-1][:3], atol=1e-5)
