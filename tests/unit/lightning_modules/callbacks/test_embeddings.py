"""`lightning predict`: vectors of a corpus in a Parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs

from lightning_modules.callbacks.embeddings import FILE
from otherside.encoder import Encoder


@pytest.mark.parametrize("stage", ["MNTP", "Supervised"])
def test_vectors_are_those_of_the_encoder_in_the_order_of_the_input(
    stage: str, tiny_llama: Path, tmp_path: Path
) -> None:
    runs.write_data(tmp_path, rows=21)
    more = ["A last text.", "And another, longer one, with commas, too."]
    (tmp_path / "more.txt").write_text("\n".join(more) + "\n")
    sources = [{"path": "sentences.txt"}, {"path": "more.txt", "instruction": "Embed: "}]
    settings = {"data.init_args.predict_sources": sources, "model.init_args.chunk_tokens": 40}
    config = runs.write_stage(tmp_path, stage, tiny_llama, root="run", steps=2, **settings)
    runs.run("fit", "--config", config, cwd=tmp_path)
    output = runs.run("predict", "--config", config, cwd=tmp_path)
    assert "reads run/checkpoints/step=2.ckpt" in output
    assert f"23 vectors are in run/{FILE}" in output
    table = pq.read_table(tmp_path / "run" / FILE)
    assert table["row"].to_pylist() == list(range(23))
    encoder = Encoder.load(tmp_path / "run" / "encoder")
    texts = (tmp_path / "sentences.txt").read_text().splitlines()
    expected = np.concatenate([encoder.encode(texts), encoder.encode(more, instruction="Embed: ")])
    assert np.abs(np.array(table["vector"].to_pylist()) - expected).max() < 1e-5 * np.abs(expected).max()
    assert sorted(path.name for path in (tmp_path / "run").glob("*.parquet*")) == [FILE]


def test_without_a_checkpoint_it_says_that_the_adapter_is_untrained(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=8)
    settings = {"data.init_args.predict_sources": [{"path": "sentences.txt"}]}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", **settings)
    assert "no checkpoint yet, so the adapter is untrained" in runs.run("predict", "--config", config, cwd=tmp_path)


def test_several_processes_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=8)
    settings = {"data.init_args.predict_sources": [{"path": "sentences.txt"}], "trainer.devices": 2}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", **settings)
    status, output = runs.start("predict", "--config", config, cwd=tmp_path).wait()
    assert status == 1
    assert "error: predict must run in one process; got 2. Set trainer.devices: 1" in output
    assert not (tmp_path / "run" / FILE).exists()
