"""A base of .bin files trains on several ranks as the same one in safetensors does."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from strategies import train
from tiny import pickled


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_training_is_the_same(strategy: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHERSIDE_CACHE", str(tmp_path / "cache"))
    runs.write_data(tmp_path, rows=30)
    folder = pickled(tiny_llama, tmp_path / "old-llama", 2)
    found = train(tmp_path, folder, "bin", "MNTP", strategy, 2, stop=2)
    [converted] = (tmp_path / "cache").iterdir()
    assert converted.name.startswith("old-llama-")
    expected = train(tmp_path, tiny_llama, "safetensors", "MNTP", strategy, 2, stop=2)
    runs.assert_equal(runs.adapter(found), runs.adapter(expected))
